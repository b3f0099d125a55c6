"""Updates out of proportion: what counts as one, and what is done with it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rome_fast.errors import EditRejectedError, InvalidArgumentError
from rome_fast.hparams import is_number
from rome_fast.types import RankOneUpdate

ACTIONS = ("shrink", "reject", "stop")
# How many updates the running median is over, and how many it needs at least.
WINDOW, _ENOUGH = 32, 8


@dataclass(frozen=True, eq=False)
class Written:
    """An update that goes into the weight, and the guard's decision on it.

    Attributes:
        limit: the largest norm that was allowed; infinite for the first updates.
        asked: its norm before it was shrunk.
        denominator: dot product of the request's denominator key with the unit vector u.
    """

    update: RankOneUpdate
    limit: float
    asked: float
    denominator: float

    def numbers(self) -> dict[str, float | None]:
        """What a log keeps of the decision."""
        return {
            "asked_norm": self.asked,
            "denominator": self.denominator,
            "limit": self.limit if math.isfinite(self.limit) else None,
        }

    def findings(self) -> list[str]:
        """Remarks for the user."""
        if self.asked <= self.limit:
            return []
        share = self.limit / self.asked
        said = f"the update of norm {self.asked:.3g} was out of proportion to those before it"
        return [f"{said} and was shrunk to {share:.0%} (guard.max_growth)"]


@dataclass(frozen=True)
class Guard:
    """What a Session does with an update that is far larger than those before it.

    One whose denominator is too small, or that is not finite, cannot be shrunk: it is rejected, or
    stops the sequence. A rejected edit leaves the model bit-identical.

    Attributes:
        max_growth: an update may be this many times as large as the running median of the last 32
            (once there are 8).
        action: "shrink" to that size, "reject", or "stop": reject, and end the sequence.
    """

    max_growth: float = 3.0
    action: str = "shrink"

    def __post_init__(self) -> None:
        if not is_number(self.max_growth) or not self.max_growth >= 1:
            raise InvalidArgumentError(
                f"guard.max_growth must be a number of 1 or more, got {self.max_growth!r}"
            )
        if self.action not in ACTIONS:
            raise InvalidArgumentError(
                f"guard.action must be one of {ACTIONS}, got {self.action!r}"
            )

    def decide(
        self, update: RankOneUpdate, norm: float, limit: float, denominator: float
    ) -> Written:
        """Let an update of this norm pass, or shrink it.

        Raises:
            EditRejectedError: it is too large, and not to be shrunk.
        """
        if norm <= limit:
            return Written(update, limit, norm, denominator)
        if self.action != "shrink":
            raise EditRejectedError(
                f"the update's norm of {norm:.3g} is out of proportion to those before it: the "
                f"guard allows {limit:.3g} (guard.max_growth={self.max_growth:g}); "
                'guard.action="shrink" would scale it down',
                norm=norm,
                limit=limit,
                denominator=denominator,
            )
        return Written(replace(update, v=update.v * (limit / norm)), limit, norm, denominator)

    def limit(self, norms: Sequence[float]) -> float:
        """The largest norm that the next update may have, after those of ``norms``."""
        if len(norms) < _ENOUGH:
            return math.inf
        return self.max_growth * statistics.median(norms[-WINDOW:])
