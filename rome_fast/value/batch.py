"""Several requests as one set of rows, and where in them the search for v* reads.

One request is a batch of one. Rows keep the order of their requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from rome_fast.value.buckets import EXACT, Buckets, filled

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.prompt.encode import TokenizedEdit


@dataclass(frozen=True, eq=False)
class EditBatch:
    """The rows of ``n_edits`` requests, padded on the right.

    The reads are the positions whose logits the loss needs: first those that predict the tokens of
    targets and their ends in all contexts of all requests, and the facts that they keep, and some
    of nobody that fill a bucket; then, one per request, the subject's token in the row of the KL
    prompt.

    Attributes:
        edits: the requests; the last one may be there several times, to fill a bucket.
        input_ids, attention_mask: int64 [n_rows, t].
        lookup_idx: int64 [n_rows], the position where key and value are read and written.
        edit_of_row: int64 [n_rows].
        read_rows, read_positions: int64 [n_reads + n_edits].
        target_ids, edit_of_read: int64 [n_reads]; reads of nobody are of edit n_edits.
        buckets: what it is filled up to, and its rows are where they are split.
    """

    edits: tuple[TokenizedEdit, ...]
    input_ids: Tensor
    attention_mask: Tensor
    lookup_idx: Tensor
    edit_of_row: Tensor
    read_rows: Tensor
    read_positions: Tensor
    target_ids: Tensor
    edit_of_read: Tensor
    buckets: Buckets = EXACT

    @classmethod
    def of(cls, edits: Sequence[TokenizedEdit], buckets: Buckets = EXACT) -> EditBatch:
        """A batch of requests, filled up to ``buckets``."""
        edits = buckets.filled_edits(edits)
        longest = max(edit.input_ids.shape[1] for edit in edits)
        first_rows = list(accumulate((len(edit.lookup_idx) for edit in edits), initial=0))[:-1]
        target_reads = [_target_reads(e, row) for e, row in zip(edits, first_rows, strict=True)]
        kl_rows = torch.tensor([r + e.n_contexts for e, r in zip(edits, first_rows, strict=True)])
        lookup_idx = torch.cat([edit.lookup_idx for edit in edits])
        read_rows = torch.cat([rows for rows, _ in target_reads])
        read_positions = torch.cat([at for _, at in target_reads])
        target_ids = torch.cat([ids for edit in edits for ids in _read_ids(edit)])
        edit_of_read = _numbered([len(rows) for rows, _ in target_reads])
        n_more = filled(len(target_ids), buckets.reads) - len(target_ids)
        return cls(
            edits=tuple(edits),
            input_ids=_joined([edit.input_ids for edit in edits], longest),
            attention_mask=_joined([edit.attention_mask for edit in edits], longest),
            lookup_idx=lookup_idx,
            edit_of_row=_numbered([len(edit.lookup_idx) for edit in edits]),
            read_rows=torch.cat([_and_last(read_rows, n_more), kl_rows]),
            read_positions=torch.cat([_and_last(read_positions, n_more), lookup_idx[kl_rows]]),
            target_ids=_and_last(target_ids, n_more),
            edit_of_read=torch.cat([edit_of_read, torch.full((n_more,), len(edits))]),
            buckets=buckets,
        )

    @property
    def n_edits(self) -> int:
        return len(self.edits)

    @property
    def n_rows(self) -> int:
        return len(self.lookup_idx)

    @property
    def flat_lookup(self) -> Tensor:
        """int64 [n_rows], the lookups as indices into the flattened [n_rows * t] positions.

        Some families flatten batch and time before the MLP; flat indices serve both forms.
        """
        return torch.arange(self.n_rows) * self.input_ids.shape[1] + self.lookup_idx

    def select(self, edits: Sequence[int]) -> EditBatch:
        """A batch of some of the requests, by number."""
        return EditBatch.of([self.edits[i] for i in edits])

    def parts(self, n_rows: int) -> list[EditBatch]:
        """The rows of its one request, at most ``n_rows`` at a time, each part with its reads."""
        assert self.n_edits == 1
        n_parts = -(-self.n_rows // n_rows)
        return [self._part(rows) for rows in torch.arange(self.n_rows).tensor_split(n_parts)]

    def _part(self, rows: Tensor) -> EditBatch:
        is_read = torch.isin(self.read_rows, rows)
        of_target = is_read[: len(self.target_ids)]
        return replace(
            self,
            input_ids=self.input_ids[rows],
            attention_mask=self.attention_mask[rows],
            lookup_idx=self.lookup_idx[rows],
            edit_of_row=self.edit_of_row[rows],
            read_rows=self.read_rows[is_read] - rows[0],
            read_positions=self.read_positions[is_read],
            target_ids=self.target_ids[of_target],
            edit_of_read=self.edit_of_read[of_target],
        )


def joined(parts: Sequence[EditBatch], logits: Sequence[Tensor]) -> Tensor:
    """The logits that the parts of a batch read, in its order: the KL prompt's come last."""
    counts = [len(part.target_ids) for part in parts]
    pairs = list(zip(logits, counts, strict=True))
    return torch.cat([*(x[:n] for x, n in pairs), *(x[n:] for x, n in pairs)])


def _target_reads(edit: TokenizedEdit, first_row: int) -> tuple[Tensor, Tensor]:
    """(rows, positions) whose logits predict the target, n_contexts * n_target each.

    Behind them those that predict the facts that are kept.
    """
    n_target = len(edit.said_ids)
    rows = [torch.arange(first_row, first_row + edit.n_contexts).repeat_interleave(n_target)]
    positions = [(edit.target_start[:, None] + torch.arange(n_target)).flatten()]
    for fact in edit.kept:
        n = len(fact.target_ids)
        rows.append(torch.full((n,), first_row + fact.row))
        positions.append(torch.arange(fact.start, fact.start + n))
    return torch.cat(rows), torch.cat(positions)


def _read_ids(edit: TokenizedEdit) -> list[Tensor]:
    """The ids that the reads predict, in their order."""
    kept = [torch.tensor(fact.target_ids) for fact in edit.kept]
    return [edit.said_ids.repeat(edit.n_contexts), *kept]


def _joined(parts: Sequence[Tensor], longest: int) -> Tensor:
    pad = torch.nn.functional.pad
    return torch.cat([pad(part, (0, longest - part.shape[1])) for part in parts])


def _and_last(x: Tensor, n_more: int) -> Tensor:
    """``x``, and its last element ``n_more`` times."""
    return torch.cat([x, x[-1:].expand(n_more)])


def _numbered(counts: Sequence[int]) -> Tensor:
    """counts[0] zeros, then counts[1] ones, and so on."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
