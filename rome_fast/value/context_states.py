"""A prefix cache of the context templates in the blocks below the edited one, across edits.

An edit of block l changes nothing below it, and the words before the prompt are the same in every
request. Their attention keys and values, and their hidden states at the input of block l, are kept
from the first request; later ones run only the tokens that follow.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.model.intercept import StopForwardError, hidden_of, hooked, with_hidden
from rome_fast.model.memory import is_out_of_memory
from rome_fast.model.precision import TF32_TOLERANCE, is_tf32, wide_norm
from rome_fast.model.spec import DownProjection, ModelSpec
from rome_fast.value.first_pass import CANNOT, FirstPass, run_first_pass
from rome_fast.value.prefix import Attention, PrefixSplit, at_positions

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.prompt.encode import TokenizedEdit
    from rome_fast.value.batch import EditBatch

# What the states depend on: the weights below the edited block, by identity and version.
Versions = tuple[tuple[int, int], ...]


class FirstPasses:
    """First passes of requests that share their contexts.

    The states are those of the first batch. They are used once they have reproduced the second
    batch's, until a weight below the edited block is written.
    """

    def __init__(self, projection: DownProjection) -> None:
        self._projection = projection
        self._states: ContextStates | None = None
        self._trusted = self._given_up = False

    def run(self, spec: ModelSpec, batch: EditBatch) -> FirstPass:
        """As ``run_first_pass``."""
        if self._states is not None and not self._states.are_current(spec):
            self._states, self._trusted = None, False
        if self._states is not None and self._trusted:
            below = self._states.enter(spec, batch)
            return run_first_pass(spec, self._projection, batch, below)
        first = run_first_pass(spec, self._projection, batch)
        if self._states is not None:
            self._trusted = self._states.reproduce(spec, batch, first)
            self._given_up = not self._trusted
        if not self._trusted:
            self._states = None
        if self._states is None and not self._given_up:
            self._states = ContextStates.of(spec, self._projection, batch, first)
        return replace(first, attention_below=())


@dataclass(frozen=True, eq=False)
class ContextStates:
    """The states of one batch's first request, to be shared by later ones.

    A row reuses as many leading tokens of its context's row as the two have in common.

    Attributes:
        input_ids, lengths: int64 [n_contexts, t] and [n_contexts], the request's context rows.
        below: what the block below the edited one returned for them.
        attention: keys and values [n_contexts, heads, t, d_head] of each block below.
        versions: of the weights that made them.
    """

    projection: DownProjection
    input_ids: Tensor
    lengths: Tensor
    below: Any
    attention: tuple[Attention, ...]
    versions: Versions

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        projection: DownProjection,
        batch: EditBatch,
        first: FirstPass,
    ) -> ContextStates | None:
        """Those of a batch's first request; None if no block below has a cache, or no versions."""
        versions = _versions_below(spec, projection)
        if not first.attention_below or versions is None:
            return None
        rows = slice(0, batch.edits[0].n_contexts)
        return cls(
            projection,
            batch.input_ids[rows],
            batch.attention_mask[rows].sum(1),
            with_hidden(first.below, hidden_of(first.below)[rows].clone()),
            # Copies, or the whole batch would stay in memory.
            tuple((k[rows].clone(), v[rows].clone()) for k, v in first.attention_below),
            versions,
        )

    def reproduce(self, spec: ModelSpec, batch: EditBatch, first: FirstPass) -> bool:
        """Whether they reproduce the result of a whole first pass over another batch."""
        try:
            found, expected = hidden_of(self.enter(spec, batch)), hidden_of(first.below)
        except CANNOT as error:
            if is_out_of_memory(error):
                raise
            return False
        at = batch.attention_mask.bool().to(expected.device)
        tolerance = 100 * torch.finfo(expected.dtype).eps
        if is_tf32(expected.device, expected.dtype):
            tolerance = TF32_TOLERANCE
        return bool(wide_norm((found - expected)[at]) <= tolerance * wide_norm(expected[at]))

    def are_current(self, spec: ModelSpec) -> bool:
        """Whether the weights below are still those that made them."""
        return _versions_below(spec, self.projection) == self.versions

    @torch.no_grad()
    def enter(self, spec: ModelSpec, batch: EditBatch) -> Any:
        """What the block below the edited one returns for a batch, in its family's form."""
        context, n_shared = self._shared(batch)
        last, length = batch.attention_mask.sum(1) - 1, batch.input_ids.shape[1]
        split = PrefixSplit.between(n_shared, last, length)
        attention = [
            (at_positions(keys[context], split.before), at_positions(values[context], split.before))
            for keys, values in self.attention
        ]
        seen: list[Any] = []

        def keep(module: Any, args: Any, output: Any) -> None:
            seen.append(output)
            raise StopForwardError

        block = spec.blocks[self.projection.layer - 1]
        with hooked(block, keep), suppress(StopForwardError):
            ids = batch.input_ids.gather(1, split.columns)
            spec.model(**split.inputs(spec.model, ids, attention))
        hidden = hidden_of(self.below)[context]
        whole = hidden.new_zeros(batch.n_rows, length, hidden.shape[-1])
        n_stored = min(length, hidden.shape[1])
        whole[:, :n_stored] = hidden[:, :n_stored]
        rows, columns = (x.to(whole.device) for x in split.is_run.nonzero(as_tuple=True))
        positions = split.columns.to(whole.device)[rows, columns]
        whole[rows, positions] = hidden_of(seen[0])[rows, columns]
        return with_hidden(seen[0], whole)

    def _shared(self, batch: EditBatch) -> tuple[Tensor, Tensor]:
        """int64 [n_rows] each: the context of every row, and how many tokens they share.

        At least one token of a row runs. Rows without a context (the KL prompt) are compared with
        the first.
        """
        context = torch.cat([_context_of_rows(edit) for edit in batch.edits])
        length = min(batch.input_ids.shape[1], self.input_ids.shape[1])
        same = batch.input_ids[:, :length] == self.input_ids[context, :length]
        n_same = same.long().cumprod(1).sum(1)
        own = batch.attention_mask.sum(1) - 1
        return context, torch.minimum(torch.minimum(n_same, own), self.lengths[context])


def _context_of_rows(edit: TokenizedEdit) -> Tensor:
    numbers = torch.arange(len(edit.lookup_idx))
    return numbers.where(numbers < edit.n_contexts, 0)


def _versions_below(spec: ModelSpec, projection: DownProjection) -> Versions | None:
    """Identities and versions of the weights that the edited block's input depends on.

    They change with every write or replacement, except writes through ``.data``. None where torch
    counts no writes (weights made under inference mode).
    """
    above = {name for name, b in spec.block_of.items() if b is not None and b >= projection.layer}
    weights = [p for name, p in spec.parameters.items() if name not in above]
    if any(p.is_inference() for p in weights):
        return None
    return tuple((p.data_ptr(), p._version) for p in weights)
