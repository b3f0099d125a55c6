"""What the edits of a weight do to ordinary text, from how they are solved: without a forward.

E |D k|^2 / E |W0 k|^2 over ordinary keys: how much the matrix' output moves, of what it is. KL and
perplexity of held texts follow it closely, whatever way edits are solved (docs/sessions.md).
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.moment.second_moment import SecondMoment


class Spread:
    """Relates what edits move to what the unedited matrix writes.

    Args:
        base: the unedited weight.
        moment: C; None for the identity.
    """

    def __init__(self, base: Tensor, weight_layout: str, moment: SecondMoment | None) -> None:
        self._base, self._layout, self._moment = base, weight_layout, moment

    def of(self, moved: float) -> float:
        """As a share of the output, from E |D k|^2."""
        return moved / self._written if self._written > 0 else 0.0

    @cached_property
    def _written(self) -> float:
        """E |W0 k|^2, once: a product with the factor of C."""
        weight = self._base if self._layout == "out_in" else self._base.T
        if self._moment is None:
            return float(torch.linalg.vector_norm(weight, dtype=torch.float64).square())
        factor = self._moment.factor()
        squares = (rows.to(factor) @ factor for rows in weight.split(512))
        return float(sum(part.square().sum().double() for part in squares))
