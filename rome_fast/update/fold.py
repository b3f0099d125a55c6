"""Edits of one weight solved as one: what the weight becomes is a function of their list alone.

    D = R (K^T C^-1 K + lam I)^-1 K^T C^-1 = sum of e_i q_i^T

The small matrix' factor gains a row with each key, and D the term e_i q_i^T: what the terms before
it leave of r_i. Any order gives the same D to rounding, and a list without an edit gives the bits
of one in which it never was (docs/derivation.md, section 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import EditRejectedError
from rome_fast.types import JointConstraint, RankOneUpdate

if TYPE_CHECKING:
    from torch import Tensor

_ROOM = 64


class Fold:
    """Constraints solved in order, each one rank-one update that later ones leave as it is.

    In float64 on the constraints' device: (2 d_key + d_value) * 8 bytes each.
    """

    def __init__(self) -> None:
        self._constraints: list[JointConstraint] = []
        self._updates: list[RankOneUpdate] = []
        # [room, d_key], C times that, and [room, d_value]; doubled when they are full.
        self._q: Tensor | None = None
        self._c: Tensor | None = None
        self._e: Tensor | None = None
        self._spreads: list[float] = []

    def solve(self, constraints: Sequence[JointConstraint]) -> list[RankOneUpdate]:
        """The updates of exactly these, one each, whatever was solved before.

        Those that the list begins with as the last one did are not solved again.

        Raises:
            EditRejectedError: an update is not finite; those before it stay solved.
        """
        n_same = 0
        for known, constraint in zip(self._constraints, constraints, strict=False):
            if not _same(known, constraint):
                break
            n_same += 1
        del self._constraints[n_same:], self._updates[n_same:], self._spreads[n_same:]
        for constraint in constraints[n_same:]:
            self._push(constraint)
        return list(self._updates)

    @property
    def spread(self) -> float:
        """E |D k|^2 = tr(D C D^T): by how much the output moves on ordinary text."""
        return self._spreads[-1] if self._spreads else 0.0

    def output(self, key: Tensor) -> Tensor:
        """D k, float64: by how much the output at a key has moved, [d_value]; 0 without edits."""
        n = len(self._updates)
        if self._q is None or self._e is None:
            return key.new_zeros((), dtype=torch.float64)
        return (self._q[:n] @ key.to(self._q)) @ self._e[:n]

    def _push(self, constraint: JointConstraint) -> None:
        n = len(self._updates)
        self._q = _with_room(self._q, n, constraint.key)
        self._c = _with_room(self._c, n, constraint.key)
        self._e = _with_room(self._e, n, constraint.residual)
        key, solved, residual = (
            x.to(self._q) for x in (constraint.key, constraint.solved, constraint.residual)
        )
        row = self._q[:n] @ key
        length = (key @ solved + constraint.lam - row @ row).sqrt()
        self._q[n] = (solved - row @ self._q[:n]) / length
        self._c[n] = (key - row @ self._c[:n]) / length
        self._e[n] = (residual - row @ self._e[:n]) / length
        crossed = (self._q[: n + 1] @ self._c[n]) * (self._e[: n + 1] @ self._e[n])
        spread = self.spread + float(2 * crossed[:n].sum() + crossed[n])
        norm = self._q[n].norm()
        dtype = constraint.residual.dtype
        u, v = (self._q[n] / norm).to(dtype), (self._e[n] * norm).to(dtype)
        if not (u.isfinite().all() and v.isfinite().all()):
            raise EditRejectedError(
                "the update is not finite: its key or what was found for its value is not, or lam "
                f"({constraint.lam:g}) is too small for edits of so like subjects"
            )
        self._constraints.append(constraint)
        self._spreads.append(spread)
        self._updates.append(RankOneUpdate(u, v, constraint.weight_layout))


def _same(a: JointConstraint, b: JointConstraint) -> bool:
    """Whether they are made of the same tensors."""
    return a.key is b.key and a.residual is b.residual and a.lam == b.lam


def _with_room(rows: Tensor | None, n: int, like: Tensor) -> Tensor:
    """With a free row behind the first ``n``."""
    if rows is not None and n < len(rows):
        return rows
    wide = like.new_empty(max(2 * n, _ROOM), len(like), dtype=torch.float64)
    if rows is not None:
        wide[:n] = rows
    return wide
