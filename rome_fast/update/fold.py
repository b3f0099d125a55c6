"""Edits of one weight solved as one: what the weight becomes is a function of their list alone.

    D = R (K^T C^-1 K + lam I)^-1 K^T C^-1 = sum of e_i q_i^T

The small matrix' factor gains a row with each key, and D the term e_i q_i^T: what the terms before
it leave of r_i. Any order gives the same D to rounding, and a list without an edit gives the bits
of one in which it never was (docs/derivation.md, section 9).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        self._q = self._c = self._e = torch.empty(0, 0, dtype=torch.float64)
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
        if not n:
            return key.new_zeros((), dtype=torch.float64)
        return (self._q[:n] @ key.to(self._q)) @ self._e[:n]

    def shares(self) -> list[float]:
        """How much of what each asks for it is given: D k . r of r . r."""
        found: list[float] = []
        for keys, residuals in self._asked(len(self._updates)):
            moved = (keys @ self._q[: len(self._updates)].T) @ self._e[: len(self._updates)]
            found += _along(moved, residuals)
        return found

    def taken(self) -> list[float]:
        """What the last one takes of each before it, as a share of what that asks for."""
        found: list[float] = []
        n = len(self._updates) - 1
        for keys, residuals in self._asked(n):
            found += _along(-torch.outer(keys @ self._q[n], self._e[n]), residuals)
        return found

    def _asked(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and residuals of the first ``n``, some at a time."""
        for start in range(0, n, _ROOM):
            part = self._constraints[start : min(start + _ROOM, n)]
            keys = torch.stack([c.key for c in part]).to(self._q)
            yield keys, torch.stack([c.residual for c in part]).to(self._e)

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


def _along(moved: Tensor, residuals: Tensor) -> list[float]:
    """The part of each row along its residual, as a share of that."""
    shares: list[float] = ((moved * residuals).sum(1) / residuals.square().sum(1)).tolist()
    return shares


def _same(a: JointConstraint, b: JointConstraint) -> bool:
    """Whether they are made of the same tensors."""
    return a.key is b.key and a.residual is b.residual and a.lam == b.lam


def _with_room(rows: Tensor, n: int, like: Tensor) -> Tensor:
    """With a free row behind the first ``n``."""
    if n < len(rows):
        return rows
    wide = like.new_empty(max(2 * n, _ROOM), len(like), dtype=torch.float64)
    if n:
        wide[:n] = rows
    return wide
