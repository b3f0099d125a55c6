"""The running sum of k k^T and what is known about it: it is factored, and saved in files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class MomentSum:
    """Sum of k k^T over ``count`` keys; of every matrix only the lower triangle is read.

    Attributes:
        moment_sum: [d_key, d_key], float64 or float32.
        compensation: [d_key, d_key] or None; the true sum is ``moment_sum + compensation``.
        count: number of keys added.
        damping: ridge, as a share of the mean eigenvalue, or "auto".
        source: where the keys came from.
        info: what the file or the collector says about it (hashes of the model, layer, ...).
    """

    moment_sum: Tensor
    compensation: Tensor | None = None
    count: int = 0
    damping: float | Literal["auto"] = 0.0
    source: str = ""
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def d_key(self) -> int:
        return int(self.moment_sum.shape[0])

    def exact_sum(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """A copy of the sum with what its compensation holds, [d_key, d_key]; of it only the
        lower triangle is valid."""
        total = self.moment_sum.to(dtype, copy=True)
        return total if self.compensation is None else total.add_(self.compensation)
