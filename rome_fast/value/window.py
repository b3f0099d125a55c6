"""A window of requests, from token ids to keys and values, all on the same weights.

As many requests run at once as memory allows: their first pass is one forward, and so is each step
of their search. Where not even one request fits, its rows run in parts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch

from rome_fast import ops
from rome_fast.errors import InsufficientMemoryError
from rome_fast.model.activations import read_activations
from rome_fast.model.memory import format_bytes, free_bytes, is_out_of_memory
from rome_fast.model.nonfinite import located
from rome_fast.model.precision import Bfloat16Weights, bfloat16_pays
from rome_fast.model.spec import DownProjection, ModelSpec, max_positions
from rome_fast.prompt.answers import Answer
from rome_fast.prompt.readback import Reading, read_logits, read_targets
from rome_fast.value import graph
from rome_fast.value.batch import EditBatch
from rome_fast.value.buckets import EXACT, Buckets
from rome_fast.value.context_states import FirstPasses
from rome_fast.value.first_pass import FirstPass, run_in_parts
from rome_fast.value.key import Keys, mean_keys
from rome_fast.value.memory import columns_of, estimate
from rome_fast.value.optimize import Value, optimize_values

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rome_fast.hparams import RomeHparams
    from rome_fast.prompt.encode import TokenizedEdit
    from rome_fast.timings import Timings

# Most bytes of activations in one batch. On a CPU a window's time per edit falls up to here, as
# products of more rows read the same weights, and beyond it no further (docs/decisions.md). For a
# GPU it is a guess: windows of 16 requests to an 8 B model.
BATCH_BYTES = {"cpu": 2**29, "cuda": 2**32}

# Measured peaks are up to 1.4 times the estimate, as allocators lose room between blocks
# (benchmarks/results/memory-estimate.json).
MARGIN = 1.5


@dataclass(frozen=True, eq=False)
class KeyValue:
    """What one request's update is computed from, and what the model says before it.

    Attributes:
        raw_before: for a request in a chat, what the model says after the plain prompt.
        answer_before: to its natural stop.
    """

    tokens: TokenizedEdit
    keys: Keys
    value: Value
    before: Reading
    raw_before: Reading | None = None
    answer_before: Answer | None = None

    def to(self, device: torch.device | str) -> KeyValue:
        """The same with all tensors of the search on ``device``."""
        keys = Keys(**{f.name: getattr(self.keys, f.name).to(device) for f in fields(Keys)})
        value = replace(self.value, value_delta=self.value.value_delta.to(device))
        return replace(self, keys=keys, value=value)


class KeyValueSearch:
    """Finds keys and values of requests on the weights as they are."""

    def __init__(
        self,
        spec: ModelSpec,
        tok: PreTrainedTokenizerBase,
        projection: DownProjection,
        hparams: RomeHparams,
        backend: str = "auto",
    ) -> None:
        self._backend = backend
        self._spec, self._tok = spec, tok
        self._projection, self._hparams = projection, hparams
        device_type = projection.weight.device.type
        self._budget = BATCH_BYTES.get(device_type, 2**30)
        self._buckets = EXACT if ops.is_torch_asked(backend) else Buckets.of(device_type)
        self._room: int | None = None
        self._first_passes = FirstPasses(projection)
        self._copies: Bfloat16Weights | None = None
        asked, is_wide = hparams.compute_dtype, projection.weight.itemsize > 2
        if (asked == "bfloat16" and is_wide) or (
            asked == "auto" and bfloat16_pays(spec, projection)
        ):
            self._copies = Bfloat16Weights(spec, projection)

    def bytes_at_once(self, edits: Sequence[TokenizedEdit]) -> int:
        """Estimated bytes of the activations of the largest batch that ``find`` will make."""
        waiting, most = sorted(edits, key=_size), 0
        while waiting:
            batch, n_rows = self._as_many_as_fit(waiting)
            most = max(most, self._bytes(batch, n_rows))
            waiting = waiting[len(batch) :]
        return most

    def find(
        self, spec: ModelSpec, edits: Sequence[TokenizedEdit], timings: Timings
    ) -> list[KeyValue]:
        """One KeyValue per request, in order.

        Args:
            spec: of the same model, as it is now.
            timings: books the seconds as "key", "value" and "read before".

        Raises:
            NonFiniteError: an activation, a loss or a logit is NaN or infinite.
            InsufficientMemoryError: there is no memory for a single row of a request.
        """
        self._spec = spec
        # Similar lengths together: rows are padded to the longest of their batch.
        order = sorted(range(len(edits)), key=lambda i: _size(edits[i]))
        waiting = [edits[i] for i in order]
        done: list[KeyValue] = []
        while len(done) < len(edits):
            batch, n_rows = self._as_many_as_fit(waiting[len(done) :])
            try:
                done += self._find_at_once(batch, n_rows, timings)
                continue
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside of the handler, whose traceback keeps the tensors of the attempt alive.
            self._expect_half(batch, n_rows)
        return [found for _, found in sorted(zip(order, done, strict=True), key=lambda x: x[0])]

    def _find_at_once(
        self, edits: Sequence[TokenizedEdit], n_rows: int, timings: Timings
    ) -> list[KeyValue]:
        """Find the keys and values of a batch; a single one's rows run ``n_rows`` at a time."""
        model, projection = self._spec.model, self._projection
        batch = EditBatch.of(edits, self._buckets_for(edits))
        if n_rows < batch.n_rows:
            first = run_in_parts(self._spec, projection, batch, n_rows)
        else:
            first = self._first_passes.run(self._spec, batch)
        with located(model, lambda: self._run_again(first.parts or [(batch, first)])):
            keys = mean_keys(projection, batch, first)
        timings.lap("key")
        value_init = torch.stack([k.value_init for k in keys])
        weights = None if self._copies is None else self._copies.current()
        values = optimize_values(
            *(self._spec, projection, batch, first),
            *(value_init, self._hparams, weights, self._backend),
        )
        if first.parts:
            values = [replace(v, shortage=self._shortage(batch, n_rows)) for v in values]
        timings.lap("value")
        before = self._read_before(edits, batch, first)
        timings.lap("read before")
        # What fills the bucket comes last.
        return [KeyValue(*f) for f in zip(edits, keys, values, before, strict=False)]

    def _run_again(self, parts: Iterable[tuple[EditBatch, FirstPass]]) -> None:
        for part, _ in parts:
            read_activations(
                self._spec.model, self._projection, part.input_ids, part.attention_mask
            )

    def _read_before(
        self, edits: Sequence[TokenizedEdit], batch: EditBatch, first: FirstPass
    ) -> list[Reading]:
        """Read the targets from the first pass's logits if it ran the bare prompts, else anew."""
        model, tok = self._spec.model, self._tok
        prompts = [edit.prompt_ids.tolist() for edit in edits]
        targets = [edit.target_ids.tolist() for edit in edits]
        if first.logits is None or any(e.prompt_row >= e.n_contexts for e in edits):
            return read_targets(model, tok, prompts, targets)
        starts = [e.prompt_row * len(e.said_ids) for e in edits]
        counts = torch.bincount(batch.edit_of_read)[: len(edits)].tolist()
        reads = first.logits.split([*counts, len(first.logits) - sum(counts)])
        return [
            read_logits(model, tok, prompt, target, logits[start : start + len(target)])
            for prompt, target, logits, start in zip(
                prompts, targets, reads[:-1], starts, strict=True
            )
        ]

    def _as_many_as_fit(
        self, edits: Sequence[TokenizedEdit]
    ) -> tuple[Sequence[TokenizedEdit], int]:
        """The next batch, and how many of its rows run at once: all, unless it is a single request.

        Raises:
            InsufficientMemoryError: not a single row fits.
        """
        room, n = self._room_for(edits[:1]), 1
        while n < len(edits) and self._bytes(edits[: n + 1]) <= min(room, self._budget):
            n += 1
        filled = self._buckets_for(edits[:n]).filled_edits(edits[:n])
        n_rows = sum(len(edit.lookup_idx) for edit in filled)
        while n == 1 and self._bytes(edits[:1], n_rows) > room:
            if n_rows == 1:
                raise self._insufficient(edits[0], f"there is room for {format_bytes(room)}")
            n_rows = _half(n_rows)
        return edits[:n], n_rows

    def _room_for(self, edits: Sequence[TokenizedEdit]) -> int:
        """The largest estimate, in bytes, that still fits."""
        if self._room is not None:
            return self._room
        wanted = int(MARGIN * self._bytes(edits))
        free = free_bytes(self._projection.weight.device, wanted)
        return sys.maxsize if free is None else int(free / MARGIN)

    def _expect_half(self, batch: Sequence[TokenizedEdit], n_rows: int) -> None:
        """Memory ran out: from now on assume that only half of what was tried fits.

        Free memory is not measured again: it may not include yet what the attempt has freed.
        """
        if n_rows == 1:
            raise self._insufficient(batch[0], "an allocation failed")
        if len(batch) > 1:
            self._room = self._bytes(batch[_half(len(batch)) :])  # the longer ones
        else:
            self._room = self._bytes(batch, _half(n_rows))
        self._first_passes = FirstPasses(self._projection)
        graph.forget(self._spec.model)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _bytes(self, edits: Sequence[TokenizedEdit], rows_at_once: int | None = None) -> int:
        """Estimated bytes of the activations."""
        buckets = self._buckets_for(edits)
        return estimate(
            self._spec, self._projection, edits, rows_at_once=rows_at_once, buckets=buckets
        ).activations

    def _buckets_for(self, edits: Sequence[TokenizedEdit]) -> Buckets:
        longest = max(edit.input_ids.shape[1] for edit in edits)
        return self._buckets.within(longest, max_positions(self._spec.model))

    def _shortage(self, batch: EditBatch, n_rows: int) -> str:
        needed = format_bytes(self._bytes(batch.edits))
        return (
            f"v* was searched with {n_rows} of {batch.n_rows} rows at a time, more slowly: at once "
            f"they would take about {needed} of memory"
        )

    def _insufficient(self, edit: TokenizedEdit, there: str) -> InsufficientMemoryError:
        least = format_bytes(self._bytes([edit], 1))
        return InsufficientMemoryError(
            f"no memory for a request of {edit.input_ids.shape[1]} tokens in {edit.n_contexts} "
            f"contexts: with one row at a time it takes about {least}, "
            f"and {there}: shorten the prompt, give fewer context_templates, or load the model in "
            "bfloat16"
        )


def _half(n: int) -> int:
    return (n + 1) // 2


def _size(edit: TokenizedEdit) -> tuple[int, int]:
    """How many tokens of its longest row run in every step, and in the first pass."""
    return columns_of(edit), edit.input_ids.shape[1]
