"""What several test files share: tolerances by dtype, and strided views among canaries."""

from __future__ import annotations

import torch
from torch import Tensor

CANARY = 777.0
"""A value no test writes; exact in every dtype."""

TOLERANCES = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-3,
}
"""Allowed error by dtype, relative to the largest element of the reference."""


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """Compare in float64, relative to the largest expected element; dtype picks the tolerance."""
    tolerance = TOLERANCES[dtype or actual.dtype]
    expected = expected.double()
    scale = expected.abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.double(), expected, rtol=0, atol=tolerance * max(scale, 1e-30)
    )


class CanaryBuffer:
    """A tensor seen through every second row and column of a larger one filled with canaries."""

    def __init__(self, tensor: Tensor, transposed: bool = False) -> None:
        rows, cols = tensor.shape[::-1] if transposed else tensor.shape
        self.buffer = torch.full((2 * rows + 3, 2 * cols + 3), CANARY, dtype=tensor.dtype)
        view = self.buffer[1 : 2 * rows + 1 : 2, 1 : 2 * cols + 1 : 2]
        self.view = view.T if transposed else view
        self._mask = torch.ones_like(self.buffer, dtype=torch.bool)
        self._mask[1 : 2 * rows + 1 : 2, 1 : 2 * cols + 1 : 2] = False
        self.view.copy_(tensor)

    def assert_intact(self) -> None:
        """Fail if anything outside the view was written."""
        strayed = (self.buffer[self._mask] != CANARY).sum().item()
        assert strayed == 0, f"{strayed} elements outside the view were overwritten"


def with_strides(matrix: Tensor, strides: str) -> Tensor:
    """The same matrix "row_major", "column_major", or (anything else) strided among canaries."""
    if strides == "row_major":
        return matrix.contiguous()
    if strides == "column_major":
        return matrix.T.contiguous().T
    return CanaryBuffer(matrix).view
