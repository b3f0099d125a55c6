"""The suffix forward of the search for v*: above the edited matrix, from the lookup token on.

The model's own forward does the work, with its own masks, positions and soft caps. The blocks
below are silent: they return their output of the first pass. The tokens before the lookup are in
the prefix cache, and the head runs only at the positions that the loss reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from rome_fast.model.intercept import (
    StopForwardError,
    answering,
    hidden_of,
    hooked,
    only_at,
    reading_only,
    with_hidden,
)
from rome_fast.model.precision import wide_norm
from rome_fast.model.spec import DownProjection, ModelSpec, input_device
from rome_fast.value.prefix import Attention, PrefixSplit, at_positions

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.value.batch import EditBatch
    from rome_fast.value.first_pass import FirstPass


@dataclass(frozen=True, eq=False)
class Rows:
    """The tensors of a batch on the device of a step, which moves nothing between devices.

    Attributes:
        input_ids: int64 [n_rows, s], of the split's columns.
        edit_of_row: as in the batch.
        read_rows, read_columns: int64 [n_reads + n_edits], the reads among the split's columns.
        is_own: bool [n_reads + n_edits], False for reads of nobody, which are some of the others
            again.
    """

    input_ids: Tensor
    edit_of_row: Tensor
    read_rows: Tensor
    read_columns: Tensor
    is_own: Tensor

    @classmethod
    def of(cls, batch: EditBatch, split: PrefixSplit, device: torch.device) -> Rows:
        columns = batch.read_positions - batch.lookup_idx[batch.read_rows]
        ids = batch.input_ids.gather(1, split.columns)
        is_own = torch.ones_like(columns, dtype=torch.bool)
        is_own[: len(batch.edit_of_read)] = batch.edit_of_read < batch.n_edits
        tensors = ids, batch.edit_of_row, batch.read_rows, columns, is_own
        return cls(*(x.to(device) for x in tensors))


@dataclass(frozen=True, eq=False)
class SuffixForward:
    """Logits as a function of the offsets, for the rows of a batch.

    Attributes:
        batch: the requests, and the positions that the loss reads.
        rows, split: of the batch, on the device of the token ids.
        below: output of the highest silent block at the split's columns; None if none is silent.
        n_silent: how many blocks are silent; the edited one may be among them.
        attention: keys and values [n_rows, heads, p, d_head] before the lookup, of each block.
        weights: used instead of the model's own; None uses those.
    """

    spec: ModelSpec
    projection: DownProjection
    batch: EditBatch
    rows: Rows
    split: PrefixSplit
    below: Any
    n_silent: int
    attention: tuple[Attention, ...]
    weights: dict[str, Tensor] | None = None

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        projection: DownProjection,
        batch: EditBatch,
        first: FirstPass,
    ) -> SuffixForward:
        """The suffix of the rows that ``first`` has run."""
        device = input_device(spec.model)
        rows, split = _placed(batch, device)
        # A silent block asks its cache for nothing but its length.
        attention = first.attention[:1] * projection.layer + first.attention
        below = first.below
        if below is not None:
            below = with_hidden(below, at_positions(hidden_of(below), split.columns))
        suffix = cls(spec, projection, batch, rows, split, below, projection.layer, attention)
        return suffix._with_edited_block_silent()

    def in_bfloat16(self, weights: dict[str, Tensor]) -> SuffixForward:
        """The same, computed in bfloat16 with the copies ``weights``; offsets keep their dtype."""
        below = self.below
        if below is not None:
            below = with_hidden(below, hidden_of(below).bfloat16())
        attention = tuple((k.bfloat16(), v.bfloat16()) for k, v in self.attention)
        return replace(self, below=below, attention=attention, weights=weights)

    def logits(self, deltas: Tensor) -> Tensor:
        """[n_reads + n_edits, vocabulary] for the offsets [n_edits, d_value], with gradients."""
        head, reads = (
            self.spec.model.get_output_embeddings(),
            (self.rows.read_rows, self.rows.read_columns),
        )
        offset = deltas[self.rows.edit_of_row.to(deltas.device)]
        with reading_only(head, *reads), self._last_mlp_only_at(*reads):
            logits: Tensor = self._run(offset).logits.squeeze(0)
            return logits

    def keep(self, edits: Sequence[int]) -> SuffixForward:
        """The same for some of the requests only."""
        batch, device = self.batch.select(edits), self.rows.input_ids.device
        rows, split = _placed(batch, device)
        going_on = torch.isin(self.batch.edit_of_row, torch.tensor(edits))
        p, s = split.before.shape[1], split.columns.shape[1]

        def kept(x: Tensor) -> Tensor:
            return x[going_on.to(x.device)][..., x.shape[-2] - p :, :]

        below = self.below
        if below is not None:
            hidden = hidden_of(below)
            below = with_hidden(below, hidden[going_on.to(hidden.device), :s])
        attention = tuple((kept(k), kept(v)) for k, v in self.attention)
        return replace(self, batch=batch, rows=rows, split=split, below=below, attention=attention)

    def _run(self, offset: Tensor) -> Any:
        """Run the model on the split rows, with ``offset`` [n_rows, d_value] added at column 0."""
        inputs = self.split.inputs(self.spec.model, self.rows.input_ids, self.attention)
        with self._moved(offset):
            if self.weights is None:
                return self.spec.model(**inputs)
            with _attention_in_bfloat16(inputs["input_ids"].device):
                return torch.func.functional_call(self.spec.model, self.weights, kwargs=inputs)

    @contextmanager
    def _moved(self, offset: Tensor) -> Iterator[None]:
        answer = self.below
        with ExitStack() as stack:
            if self.n_silent > self.projection.layer:
                answer = with_hidden(self.below, _move_first(hidden_of(self.below), offset))
            else:
                stack.enter_context(
                    hooked(self.projection.module, lambda _, __, out: _move_first(out, offset))
                )
            for block in self.spec.blocks[: self.n_silent]:
                stack.enter_context(answering(block, answer))
            yield

    def _last_mlp_only_at(self, rows: Tensor, columns: Tensor) -> AbstractContextManager[None]:
        """Run the last MLP only at the positions read: after the last attention no other counts."""
        last = self.spec.n_layers - 1
        mlp = self.spec.mlp(last)
        if mlp is None or self.projection.layer == last:
            return nullcontext()
        return only_at(mlp, rows, columns, self.rows.is_own)

    @torch.no_grad()
    def _with_edited_block_silent(self) -> SuffixForward:
        """Silence the edited block too, if its matrix's output reaches the block's unchanged.

        A norm or a factor between the two (Gemma 2, OLMo 2, Granite) forbids it. A trial decides.
        """
        n, d_value = self.batch.n_rows, self.projection.d_value
        zero = torch.zeros(n, d_value)
        at_rest = self._edited_block(zero)
        hidden = hidden_of(at_rest)
        noise = torch.randn(n, d_value, generator=torch.Generator().manual_seed(0))
        offset = noise.to(hidden) * (wide_norm(hidden) / hidden.numel() ** 0.5).to(hidden)
        moved = hidden_of(self._edited_block(offset))
        expected = _move_first(hidden, offset)
        rounding = 8 * torch.finfo(hidden.dtype).eps * wide_norm(expected)
        if not wide_norm(moved - expected) <= rounding:
            return self
        return replace(self, below=at_rest, n_silent=self.projection.layer + 1)

    def _edited_block(self, offset: Tensor) -> Any:
        """What the edited block returns; nothing above it is computed."""
        seen: list[Any] = []

        def keep(module: Any, args: Any, output: Any) -> None:
            seen.append(output)
            raise StopForwardError

        with hooked(self.spec.blocks[self.projection.layer], keep), suppress(StopForwardError):
            self._run(offset)
        return seen[0]


def _placed(batch: EditBatch, device: torch.device) -> tuple[Rows, PrefixSplit]:
    """The tensors of a batch, and where its rows are split, on ``device``."""
    split = PrefixSplit.at_lookup(batch)
    return Rows.of(batch, split, device), split.to(device)


def _attention_in_bfloat16(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU the fused kernel's backward is ten times slower in bfloat16 than in float32."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _move_first(x: Tensor, offset: Tensor) -> Tensor:
    """[n, s, d] (or its flat rows) with [n, d] added at column 0."""
    n, d = offset.shape
    rows = x.reshape(n, -1, d)
    first = rows[:, :1] + offset.to(rows)[:, None]
    return torch.cat([first, rows[:, 1:]], dim=1).view_as(x)
