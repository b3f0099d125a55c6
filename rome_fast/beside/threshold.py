"""Where a unit begins to answer, and how steeply, from what was measured of its direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Between the loudest of everything else and the subject's own response of 1, but not lower, where
# rarer tokens answer, and not higher, where paraphrases do not.
_LOWEST, _HIGHEST = 0.5, 0.8
# So far below its threshold a unit is silent: SiLU(-9) is -1e-3, GELU(-9) is 0.
SILENT = 9.0
_SLOPES = (12.0, 48.0)


@dataclass(frozen=True)
class Threshold:
    """A unit answers where w.h exceeds ``at``: act(slope * (w.h - at))."""

    at: float
    slope: float

    @classmethod
    def above(cls, others: Tensor, share: float) -> Threshold:
        """Above the responses of others [m], which may be none, by a share of what is left to 1."""
        high = float(others.max()) if len(others) else 0.0
        at = min(max(high + share * (1 - high), _LOWEST), _HIGHEST)
        least, most = _SLOPES
        slope = min(max(SILENT / max(at - max(high, 0.0), 1e-6), least), most)
        return cls(at, slope)
