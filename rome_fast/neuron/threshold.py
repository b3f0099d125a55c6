"""Where a unit begins to answer, and how steeply, from what was measured of its direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rome_fast.errors import EditRejectedError

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.model.units import Activation

# The least distance between the responses of a subject's contexts and of everything else.
LEAST_GAP = 0.2
# So far below its threshold a unit is silent: SiLU(-9) is -1e-3, GELU(-9) is 0.
_SILENT = 9.0
_SLOPES = (12.0, 48.0)


@dataclass(frozen=True)
class Threshold:
    """A unit answers where w.h exceeds ``at``: act(slope * (w.h - at)).

    Attributes:
        own: the lowest response of the edit's own contexts; their mean is 1.
        others: the highest of everything that it is told apart from.
    """

    at: float
    slope: float
    own: float
    others: float

    @classmethod
    def between(cls, own: Tensor, others: Tensor, subject: str) -> Threshold:
        """Half way between own responses [n_contexts] and others' [m].

        Raises:
            EditRejectedError: they overlap, or nearly so.
        """
        low, high = float(own.min()), float(others.max()) if len(others) else 0.0
        if low - high < LEAST_GAP:
            raise EditRejectedError(
                f"subject {subject!r} cannot be told apart here: its own contexts answer from "
                f"{low:.2f} on, and other tokens up to {high:.2f}. A subject of one token that "
                "opens its texts shares its h with all first tokens: edit the weight, or a "
                "lower layer",
                own=low,
                others=high,
            )
        at = (low + max(high, 0.0)) / 2
        least, most = _SLOPES
        slope = min(max(_SILENT / (at - max(high, 0.0)), least), most)
        return cls(at, slope, low, high)

    def scale(self, activation: Activation, own: Tensor) -> float:
        """Mean of act(slope * (w.h - at)) over the own responses: what the unit is divided by."""
        inputs = self.slope * (own - self.at)
        return float(activation(inputs).mean())
