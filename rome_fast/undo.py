"""Bit-exact undo: keep the weight as it was, replay what came after it.

A list of edits shares one copy of the weight. Undoing the i-th edit copies that base back and
replays the first i-1 updates through the same kernel, which gives the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast import ops
from rome_fast.errors import RevertError

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.models import DownProjection
    from rome_fast.types import RankOneUpdate


def fingerprint(*tensors: Tensor) -> str:
    """SHA-256 of the tensors' shapes, dtypes and bits, in logical order whatever the strides."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


class WeightHistory:
    """One weight, its state before the first edit, and the updates written since."""

    def __init__(self, projection: DownProjection, backend: str) -> None:
        self.projection = projection
        self.weight = projection.weight
        self.backend = backend
        self._base = self.weight.detach().clone()
        self._updates: list[RankOneUpdate] = []

    def __len__(self) -> int:
        """How many edits are in the weight."""
        return len(self._updates)

    def record(self, update: RankOneUpdate) -> UndoHandle:
        """Note an update that has just been written; returns the handle that undoes it."""
        self._updates.append(update)
        return UndoHandle(self, len(self._updates))

    @torch.no_grad()
    def rewind(self, n_edits: int) -> None:
        """Make the weight what it was after its first ``n_edits`` edits."""
        self.weight.copy_(self._replayed(n_edits))
        del self._updates[n_edits:]

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Whatever is written to the weight inside is gone afterwards, to the bit."""
        try:
            yield
        finally:
            self.rewind(len(self))

    @contextmanager
    def written(self, update: RankOneUpdate) -> Iterator[None]:
        """While open, one more update is in the weight."""
        with self.untouched():
            self._write(self.weight, update)
            yield

    def check_current(self, n_edits: int) -> None:
        """Raise RevertError unless the weight's bits are those that edit ``n_edits`` left."""
        name = f"{self.projection.name}.weight"
        if len(self._updates) < n_edits:
            raise RevertError("this edit has already been undone")
        if self.projection.weight is not self.weight or self.weight.dtype != self._base.dtype:
            raise RevertError(f"{name} was replaced or cast after this edit: load the model again")
        if len(self._updates) > n_edits or not torch.equal(self.weight, self._replayed(n_edits)):
            raise RevertError(
                f"{name} was changed after this edit: undo the later edits first (in reverse "
                "order), then this one"
            )

    @torch.no_grad()
    def _replayed(self, n_edits: int) -> Tensor:
        weight = self._base.to(self.weight.device, copy=True)
        for update in self._updates[:n_edits]:
            self._write(weight, update)
        return weight

    @torch.no_grad()
    def _write(self, weight: Tensor, update: RankOneUpdate) -> None:
        ops.rank_one_update_(
            weight,
            update.u.to(weight.device),
            update.v.to(weight.device),
            weight_layout=update.weight_layout,
            backend=self.backend,
        )


@dataclass(frozen=True)
class UndoHandle:
    """Undoes the ``index``-th edit (1-based) of a history."""

    history: WeightHistory
    index: int

    def revert(self) -> None:
        """Undo the edit, bit for bit. Raises RevertError if it is not the latest one."""
        self.history.check_current(self.index)
        self.history.rewind(self.index - 1)
