"""Updates out of proportion: what counts as one, and what becomes of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rome_fast.errors import InvalidArgumentError

ACTIONS = ("shrink", "reject", "stop")
# How many updates make a running median, and how many it takes to begin.
_WINDOW, _ENOUGH = 32, 8


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
        if not self.max_growth >= 1:
            raise InvalidArgumentError(
                f"guard.max_growth must be 1 or more, got {self.max_growth!r}"
            )
        if self.action not in ACTIONS:
            raise InvalidArgumentError(
                f"guard.action must be one of {ACTIONS}, got {self.action!r}"
            )

    def limit(self, norms: Sequence[float]) -> float:
        """The largest norm that the next update may have, after those of ``norms``."""
        if len(norms) < _ENOUGH:
            return math.inf
        return self.max_growth * statistics.median(norms[-_WINDOW:])
