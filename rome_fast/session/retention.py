"""C + weight * sum of k k^T over keys already edited, kept as one Cholesky factor.

A new edit solved in this metric leaves the earlier ones alone: recursive least squares, one
rank-one update of the factor for each key (op ``cholesky_update_``) and one downdate when an edit
is taken out. The sum is factored again only if many keys come or go at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

import torch

from rome_fast import ops
from rome_fast.errors import SecondMomentError
from rome_fast.moment.factorise import solve_with, whiten_with
from rome_fast.update.joint import MIN_SINE

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.model.spec import DownProjection
    from rome_fast.moment.second_moment import SecondMoment

# With more than 32 and more than d_key / 16 keys, factoring again beats an update for each.
_MANY, _PART = 32, 16


class RetainedMoment:
    """The metric of a Session's updates: C and the retained keys.

    Args:
        base: C; None for the identity.
        weight: of an edited key, in units of all ordinary keys together: C is their mean k k^T.

    Attributes:
        retained: numbers of the edits whose keys are in the factor.
    """

    def __init__(
        self, base: SecondMoment | None, weight: float, projection: DownProjection, backend: str
    ) -> None:
        self._base, self._weight, self._backend = base, weight, backend
        self._device, self._d_key = projection.weight.device, projection.d_key
        self._keys: dict[int, Tensor] = {}
        self._firsts = FirstKeys(projection.d_key)
        self._factor = self._fresh_factor()

    @property
    def retained(self) -> frozenset[int]:
        return frozenset(self._keys)

    def factor(self) -> Tensor:
        """Its lower Cholesky factor, [d_key, d_key]."""
        return self._factor

    def whiten(self, keys: Tensor) -> Tensor:
        """L^-1 k for keys [n, d_key], float64."""
        return whiten_with(self._factor, keys)

    def solve(self, keys: Tensor) -> Tensor:
        """C^-1 k for keys [d_key] or [n, d_key], float64."""
        return solve_with(self._factor, keys)

    def near(self, key: Tensor) -> frozenset[int]:
        """Numbers of the holding edits, retained or not, whose keys nearly have this direction.

        They are not protected from it: only an update out of all proportion could move the output
        of one key and not of the other.
        """
        solved = self._solve_base(key)
        return self._firsts.near(solved, float(key.double() @ solved))

    def retain(self, keys: Mapping[int, Tensor], released: AbstractSet[int] = frozenset()) -> None:
        """Retain exactly these keys, [m, d_key] of each edit, by the numbers of the edits.

        Args:
            released: numbers of edits that hold, and so may be near, but are not retained.

        Raises:
            SecondMomentError: a key is not finite, or too large for the factor's dtype.
        """
        for number in self._firsts.numbers - keys.keys():
            self._firsts.remove(number)
        gone = [n for n in self._keys if n not in keys or n in released]
        new = [n for n in keys if n not in self._keys and n not in released]
        n_rows = sum(len(self._keys[n]) for n in gone) + sum(len(keys[n]) for n in new)
        removed = [self._keys.pop(n) for n in gone]
        if self._are_many(n_rows) and self._factor_at_once([keys[n] for n in new]):
            self._keys |= {n: keys[n] for n in new}
        else:
            if not all(self._update(key, downdate=True) for rows in removed for key in rows):
                self._rebuild()
            for number in new:
                self._put_in(number, keys[number])
        for number in keys.keys() - self._firsts.numbers:
            first = keys[number][0]
            self._firsts.add(number, first, float(first.double() @ self._solve_base(first)))

    def _put_in(self, number: int, new: Tensor) -> None:
        if not all(self._update(key, downdate=False) for key in new):
            self._rebuild()
            raise SecondMomentError(f"the keys of edit {number} cannot be retained")
        self._keys[number] = new

    def _are_many(self, n_rows: int) -> bool:
        return n_rows > max(_MANY, self._d_key // _PART)

    def _factor_at_once(self, new: Sequence[Tensor] = ()) -> bool:
        """Factor C and the keys that stay or are new; False, and no change, where that fails."""
        factor = self._fresh_factor()
        rows = [*self._keys.values(), *new]
        if rows:
            wide = torch.cat(rows).to(factor)
            total = (factor @ factor.T).addmm_(wide.T, wide, alpha=self._weight)
            factor, failed = torch.linalg.cholesky_ex(total)
            if int(failed) or not torch.isfinite(factor).all():
                return False
        self._factor = factor
        return True

    def _update(self, key: Tensor, downdate: bool) -> bool:
        vector = key.to(self._factor) * math.sqrt(self._weight)
        return bool(
            ops.cholesky_update_(self._factor, vector, downdate=downdate, backend=self._backend)
        )

    def _rebuild(self) -> None:
        """Make the factor again from C and the retained keys, after an update of it has failed."""
        rows = [key for keys in self._keys.values() for key in keys]
        if self._are_many(len(rows)) and self._factor_at_once():
            return
        self._factor = self._fresh_factor()
        for key in rows:
            self._update(key, downdate=False)

    def _fresh_factor(self) -> Tensor:
        if self._base is None:
            return torch.eye(self._d_key, dtype=torch.float64, device=self._device)
        return self._base.factor().to(self._device, copy=True)

    def _solve_base(self, key: Tensor) -> Tensor:
        """C^-1 k of ordinary keys alone, float64, on the key's device."""
        wide = key.double()
        return wide if self._base is None else self._base.solve(wide).to(key.device)


class FirstKeys:
    """The first key of every edit that holds, as a row of one matrix that grows by doubling.

    It gives the angles between a new key and all earlier ones: stacking thousands of keys again for
    each edit would take longer than the products.
    """

    def __init__(self, d_key: int) -> None:
        self._rows = torch.empty(0, d_key, device="cpu")
        self._squares = torch.empty(0, dtype=torch.float64, device="cpu")
        self._numbers: list[int] = []
        self._row_of: dict[int, int] = {}

    @property
    def numbers(self) -> AbstractSet[int]:
        """Numbers of the edits whose keys are here."""
        return self._row_of.keys()

    def add(self, number: int, key: Tensor, square: float) -> None:
        """Add a key [d_key] with its k . C^-1 k."""
        n = len(self._numbers)
        if n == len(self._rows):
            room = max(n, 64)
            self._rows = torch.cat([self._rows.to(key), key.new_empty(room, len(key))])
            self._squares = torch.cat([self._squares, self._squares.new_empty(room)])
        self._rows[n], self._squares[n] = key, square
        self._row_of[number] = n
        self._numbers.append(number)

    def remove(self, number: int) -> None:
        """Forget a key; the last row takes its place."""
        row, last = self._row_of.pop(number), len(self._numbers) - 1
        self._rows[row], self._squares[row] = self._rows[last].clone(), self._squares[last].clone()
        moved = self._numbers.pop()
        if row < last:
            self._numbers[row], self._row_of[moved] = moved, row

    def near(self, solved: Tensor, square: float) -> frozenset[int]:
        """Edits whose key has a small angle with k, given C^-1 k [d_key] and k . C^-1 k."""
        n = len(self._numbers)
        # In the keys' own dtype, which is accurate enough for an angle.
        products = (self._rows[:n] @ solved.to(self._rows)).double().cpu()
        close = products.square() > (1 - MIN_SINE**2) * square * self._squares[:n]
        return frozenset(self._numbers[i] for i in close.nonzero()[:, 0].tolist())
