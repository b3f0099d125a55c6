"""Bit-exact undo: keep the weight as it was, replay what came after it.

A list of edits shares one copy of the weight. Undoing the i-th edit copies that base back and
replays the first i-1 updates through the same kernel, which gives the same bits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast import ops
from rome_fast.errors import RevertError

if TYPE_CHECKING:
    from torch import Tensor

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

    def __init__(self, weight: Tensor, backend: str) -> None:
        self.weight = weight
        self.backend = backend
        self._base = weight.detach().clone()
        self._updates: list[RankOneUpdate] = []
        self._states = [fingerprint(weight)]

    def record(self, update: RankOneUpdate) -> UndoHandle:
        """Note an update that has just been written; returns the handle that undoes it."""
        self._updates.append(update)
        self._states.append(fingerprint(self.weight))
        return UndoHandle(self, len(self._updates))

    @torch.no_grad()
    def rewind(self, n_edits: int) -> None:
        """Make the weight what it was after its first ``n_edits`` edits."""
        self.weight.copy_(self._base)
        for update in self._updates[:n_edits]:
            ops.rank_one_update_(
                self.weight,
                update.u,
                update.v,
                weight_layout=update.weight_layout,
                backend=self.backend,
            )
        del self._updates[n_edits:], self._states[n_edits + 1 :]

    def check_current(self, n_edits: int) -> None:
        """Raise RevertError unless the weight is as the ``n_edits``-th edit left it."""
        if len(self._updates) < n_edits:
            raise RevertError("this edit has already been undone")
        if len(self._updates) > n_edits or fingerprint(self.weight) != self._states[n_edits]:
            raise RevertError(
                "the weight was changed after this edit: undo the later edits first "
                "(in reverse order), then this one"
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
