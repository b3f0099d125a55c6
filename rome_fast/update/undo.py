"""Bit-exact undo: keep the weight as it was, replay the updates that stay.

A list of edits shares one copy of the weight. Taking an edit out copies that base back and replays
the other updates through the same kernel, which gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

import torch

from rome_fast import ops
from rome_fast.errors import NonFiniteError, RevertError
from rome_fast.model.owner import check_free

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.model.spec import DownProjection
    from rome_fast.types import RankOneUpdate


# Histories that share a base, by the id of their weight; each holds the weight itself.
_latest: WeakValueDictionary[int, WeightHistory] = WeakValueDictionary()
# Undoing an edit adds all others of its base again, in turn.
_MOST_EDITS_OF_A_BASE = 64


class WeightState(NamedTuple):
    """A snapshot of a weight, to detect whether others have written to it.

    Attributes:
        version: counts in-place writes, except through ``.data``; those show in the norm.
        place: dtype, device and address.
    """

    version: int
    place: tuple[object, ...]
    norm: float

    @classmethod
    def of(cls, weight: Tensor) -> WeightState:
        norm = torch.linalg.vector_norm(weight.detach(), dtype=torch.float64)
        place = (weight.dtype, weight.device, weight.data_ptr())
        return cls(weight._version, place, float(norm))

    def same_bits(self, other: WeightState) -> bool:
        """Whether nothing was written between the two."""
        return self.version == other.version and math.isclose(self.norm, other.norm, rel_tol=1e-12)


class WeightHistory:
    """One weight, its state before the first edit, and the updates that are in it.

    The weight is the base plus the updates, added in their order; a base that is shared has the
    updates of earlier histories between the two. Half-precision weights are that
    sum in float32, rounded once, so that many small updates are not lost one by one.
    """

    def __init__(self, projection: DownProjection, backend: str) -> None:
        self.projection = projection
        self.weight = projection.weight
        self.backend = backend
        self.base = self.weight.detach().clone()
        self._earlier: tuple[RankOneUpdate, ...] = ()
        self._updates: list[RankOneUpdate] = []
        self._sum: Tensor | None = None
        self._left: WeightState | None = None
        # In-place writes whose bits were put back.
        self._n_put_back = 0

    def __len__(self) -> int:
        """How many edits are in the weight."""
        return len(self._updates)

    @property
    def updates(self) -> tuple[RankOneUpdate, ...]:
        """The updates that are in the weight, in order."""
        return tuple(self._updates)

    @property
    def sum(self) -> Tensor:
        """What updates are added to: the weight itself, or for half precision its float32 sum."""
        if self.weight.itemsize > 2:
            return self.weight
        if self._sum is None:
            self._sum = self._replayed(self._updates)
        return self._sum

    @property
    def rounded(self) -> Tensor | None:
        """Where an addition to the sum writes the rounded sum; None if the sum is the weight."""
        return self.weight if self.weight.itemsize <= 2 else None

    @property
    def stamp(self) -> tuple[int, int | None]:
        """Changes with each write to the weight or to its sum, unless it was put back."""
        version = self.weight._version - self._n_put_back
        return version, None if self._sum is None else self._sum._version

    def share_base(self) -> None:
        """Use the copy of the history before this one, if nobody else has written to the weight.

        Results of a loop of edits, all of which can be undone, then keep one copy for many.
        """
        before = _latest.get(id(self.weight))
        if before is not None and before._leads_to(self):
            self.base = before.base
            self._earlier = (*before._earlier, *before._updates)
        _latest[id(self.weight)] = self

    def _leads_to(self, other: WeightHistory) -> bool:
        return (
            self.weight is other.weight
            and self.backend == other.backend
            and self._left is not None
            and self._left == WeightState.of(other.weight)
            and len(self._earlier) + len(self) < _MOST_EDITS_OF_A_BASE
        )

    def close(self) -> None:
        """After the last update: free the float32 sum's memory; the next update makes it again."""
        self._sum = None
        self._left = WeightState.of(self.weight)

    def record(self, update: RankOneUpdate) -> UndoHandle:
        """Note an update that is now in ``sum`` and ``rounded``; returns the handle to undo it.

        Raises:
            NonFiniteError: the weight has overflown its dtype; the caller puts it back.
        """
        if not torch.isfinite(self.weight).all():
            raise NonFiniteError(
                f"{self.projection.name}.weight overflows {self.weight.dtype} with an update of "
                f"norm {update.norm:.3g}: load the model in float32 or bfloat16"
            )
        self._updates.append(update)
        return UndoHandle(self, len(self._updates))

    def add(self, update: RankOneUpdate) -> UndoHandle:
        """Add an update to the weight. As ``record``."""
        self._add_to(self.sum, update, self.rounded)
        return self.record(update)

    def rewind(self, n_edits: int) -> None:
        """Make the weight what it was after its first ``n_edits`` edits."""
        self.replay(self._updates[:n_edits])

    @torch.no_grad()
    def replay(self, updates: Sequence[RankOneUpdate]) -> None:
        """Make the weight the base plus exactly these updates; on an error it stays as it was."""
        try:
            self._write(updates)
        except BaseException:
            self._write(self._updates)
            raise
        self._updates = list(updates)
        if self._left is not None:
            self._left = WeightState.of(self.weight)

    def _write(self, updates: Sequence[RankOneUpdate]) -> None:
        """In place: there may be no memory for a second weight. A sum is kept if there was one."""
        if self.weight.itemsize > 2:
            self._replay_into(self.weight, updates)
        elif self._sum is not None:
            self._replay_into(self._sum, updates)
            self.weight.copy_(self._sum)
        else:
            self.weight.copy_(self._replayed(updates))

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """On exit, undo whatever was written to the weight inside, recorded or not."""
        n_edits = len(self)
        try:
            yield
        finally:
            self.rewind(n_edits)

    @contextmanager
    def as_if(self, updates: Sequence[RankOneUpdate]) -> Iterator[None]:
        """While open, the weight is the base plus these alone; afterwards the bits it had."""
        if not updates and not self._updates:
            yield
            return
        now, version = self.weight.detach().clone(), self.weight._version
        try:
            with torch.no_grad():
                self.weight.copy_(self._replayed(updates))
            yield
        finally:
            with torch.no_grad():
                self.weight.copy_(now)
            self._n_put_back += self.weight._version - version

    @contextmanager
    def written(self, update: RankOneUpdate) -> Iterator[None]:
        """While open, one more update is in the weight."""
        with self.untouched():
            self._add_to(self.sum, update, self.rounded)
            yield

    def check_current(self, n_edits: int) -> None:
        """Raise RevertError unless the weight's bits are those that edit ``n_edits`` left.

        Raises:
            SessionError: an open Session edits the weight.
        """
        name = f"{self.projection.name}.weight"
        check_free(self.weight, name)
        if len(self._updates) < n_edits:
            raise RevertError("this edit has already been undone")
        if self.projection.weight is not self.weight or self.weight.dtype != self.base.dtype:
            raise RevertError(f"{name} was replaced or cast after this edit: load the model again")
        left = self._replayed(self._updates[:n_edits]).to(self.weight.dtype)
        if len(self._updates) > n_edits or not torch.equal(self.weight, left):
            raise RevertError(
                f"{name} was changed after this edit: undo the later edits first (in reverse "
                "order), then this one"
            )

    @torch.no_grad()
    def _replayed(self, updates: Sequence[RankOneUpdate]) -> Tensor:
        wide = self.base.dtype if self.base.itemsize > 2 else torch.float32
        total = torch.empty_like(self.base, device=self.weight.device, dtype=wide)
        self._replay_into(total, updates)
        return total

    def _replay_into(self, total: Tensor, updates: Sequence[RankOneUpdate]) -> None:
        total.copy_(self.base)
        for update in (*self._earlier, *updates):
            self._add_to(total, update)

    @torch.no_grad()
    def _add_to(self, total: Tensor, update: RankOneUpdate, rounded: Tensor | None = None) -> None:
        ops.rank_one_update_(
            total,
            update.u.to(total.device),
            update.v.to(total.device),
            weight_layout=update.weight_layout,
            rounded=rounded,
            backend=self.backend,
        )


@dataclass(frozen=True)
class UndoHandle:
    """Undoes the ``index``-th edit (1-based) of a history."""

    history: WeightHistory
    index: int

    def revert(self) -> None:
        """Undo the edit, bit for bit.

        Raises:
            RevertError: it is not the latest one.
            SessionError: an open Session edits the weight.
        """
        self.history.check_current(self.index)
        self.history.rewind(self.index - 1)

    def rewind(self) -> None:
        """Make the weight what it was before the call that made this edit."""
        self.history.rewind(0)
