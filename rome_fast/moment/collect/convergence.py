"""When C is known well enough: when C^-1 k of held-out keys no longer changes.

That is checked at every doubling of the count. Sampling noise falls with the root of the count,
so the change from n to 2n keys is about the error that is left at 2n.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.errors import SecondMomentError

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.moment.second_moment import SecondMoment

HELD_OUT_ROWS, HELD_OUT_PER_ROW = 8, 8
# Where the drift of an edited model on other text is within 15 % of its limit (docs/numerics.md).
TOLERANCE = 0.3


@dataclass
class Convergence:
    """One layer's held-out keys, and how much their solutions changed from check to check.

    Attributes:
        keys: [64, d_key], of the first rows; rows of zeros until they are seen. They are not
            added to the second moment.
        solutions: C^-1 k of the last check, [64, d_key], or None before the first.
        checks: JSON-able: count, change (median over the keys of |x - x'| / |x|), cosine (median
            of that between x and x').
    """

    keys: Tensor
    solutions: Tensor | None = None
    checks: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, d_key: int) -> Convergence:
        return cls(torch.zeros(HELD_OUT_ROWS * HELD_OUT_PER_ROW, d_key, dtype=torch.float64))

    def hold_out(self, row_index: int, keys: Tensor, positions: list[int]) -> None:
        """Keep the keys [t, d_key] of one of the first rows at ``positions``."""
        first = row_index * HELD_OUT_PER_ROW
        self.keys[first : first + len(positions)] = keys[positions].double().cpu()

    def seen(self) -> Tensor:
        """The keys that were held out, [n, d_key]."""
        return self.keys[self.keys.any(dim=1)]

    def taken_back(self) -> Tensor:
        """The same keys, which are then no longer held out: for a run that ended before a check."""
        keys = self.seen()
        self.keys.zero_()
        return keys

    def check(self, moment: SecondMoment) -> None:
        """Solve again and compare with the last time."""
        try:
            solutions = moment.solve(self.seen()).cpu()
        except SecondMomentError:
            # Without a ridge few keys leave C singular: wait for as many as the error asks for.
            if moment.count >= 5 * moment.d_key:
                raise
            return
        moment.drop_factor()  # the factors of all layers may not fit in memory
        entry: dict[str, Any] = {"count": moment.count, "ridge": moment.ridge()}
        if self.solutions is not None:
            change = (solutions - self.solutions).norm(dim=1) / solutions.norm(dim=1)
            cosine = torch.cosine_similarity(solutions, self.solutions)
            entry["change"] = float(change.median())
            entry["cosine"] = float(cosine.median())
        self.checks.append(entry)
        self.solutions = solutions

    @property
    def converged(self) -> bool:
        """Whether the last check found less change than ``TOLERANCE``."""
        return bool(self.checks) and self.checks[-1].get("change", float("inf")) <= TOLERANCE

    def report(self) -> dict[str, Any]:
        """For ``SecondMoment.info``."""
        return {"converged": self.converged, "tolerance": TOLERANCE, "checks": self.checks}

    def summary(self) -> str:
        """For ``SecondMoment.source``."""
        if not self.checks or "change" not in self.checks[-1]:
            return ", too few to tell whether they are enough"
        verdict = "" if self.converged else " (not converged)"
        return f", C^-1 k within {self.checks[-1]['change']:.0%}{verdict}"


def held_out_of(row_index: int, positions: list[int]) -> list[int]:
    """Which of a row's positions are kept for the check: a few of each of the first rows."""
    if row_index >= HELD_OUT_ROWS:
        return []
    step = max(1, len(positions) // HELD_OUT_PER_ROW)
    return positions[step // 2 :: step][:HELD_OUT_PER_ROW]
