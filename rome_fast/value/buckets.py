"""Sizes that batches are filled up to on a GPU, so that a few captured graphs serve all requests.

What is added changes no result: requests twice, reads of nobody, columns that are masked. It costs
little as long as a step's time is that of reading the weights, as one edit's should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rome_fast.prompt.encode import TokenizedEdit


@dataclass(frozen=True)
class Buckets:
    """The unit of every size, of which ``filled`` makes buckets; 0 leaves a size as it is.

    Attributes:
        edits, reads: requests of a batch, and their reads that predict targets.
        before, columns: of a row, the positions in its prefix cache, and those that run.
    """

    edits: int = 0
    reads: int = 0
    before: int = 0
    columns: int = 0

    @classmethod
    def of(cls, device_type: str) -> Buckets:
        """Those of a device."""
        return _OF_DEVICE.get(device_type, EXACT)

    def within(self, length: int, limit: int | None) -> Buckets:
        """These; none where rows of ``length`` tokens might be filled up beyond a model's limit."""
        # A size grows by half at most, or to a unit.
        longest = length + length // 2 + self.before + self.columns
        return self if limit is None or longest <= limit else EXACT

    def filled_edits(self, edits: Sequence[TokenizedEdit]) -> list[TokenizedEdit]:
        """The requests, and the last one again until the bucket is full."""
        n_more = filled(len(edits), self.edits) - len(edits)
        return [*edits, *[edits[-1]] * n_more]


EXACT = Buckets()

# One request then has one of a dozen shapes: a target of up to five tokens in three contexts is 15
# reads, and texts before a subject are up to 48 tokens.
_OF_DEVICE = {"cuda": Buckets(edits=1, reads=16, before=16, columns=8)}


def filled(n: int, unit: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, ... units that is ``n`` or more; 0 stays 0."""
    if unit == 0 or n == 0:
        return n
    units = (size for power in count() for size in (2**power, 3 * 2**power // 2))
    return next(unit * size for size in units if unit * size >= n)
