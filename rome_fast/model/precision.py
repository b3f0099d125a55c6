"""Precision: half precision is widened before sums and squares; bfloat16 copies of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.model.spec import DownProjection, ModelSpec


class Bfloat16Weights:
    """bfloat16 copies of all weights but those of the blocks below the edited one; made once.

    Args:
        projection: the edited matrix; the weights of its block are copied again at each use.
    """

    def __init__(self, spec: ModelSpec, projection: DownProjection) -> None:
        self._copies, self._edited = {}, {}
        for name, parameter in spec.parameters.items():
            block = spec.block_of[name]
            if block is None or block >= projection.layer:
                self._copies[name] = _copy(parameter)
            if block == projection.layer:
                self._edited[name] = parameter

    def current(self) -> dict[str, Tensor]:
        """The copies by parameter name, updated to the present weights; always the same tensors."""
        for name, parameter in self._edited.items():
            self._copies[name].copy_(parameter.detach())
        return self._copies


# How far products of float32 in TF32, which has 10 bits, are from each other, relative to their
# norm: 3.7e-4 on an H200.
TF32_TOLERANCE = 5e-3


def is_tf32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch multiplies such matrices in TF32."""
    is_cuda_float = device.type == "cuda" and dtype == torch.float32
    return is_cuda_float and torch.backends.cuda.matmul.fp32_precision == "tf32"


def widen(x: Tensor) -> Tensor:
    """Half precision -> float32; float32 and float64 as they are."""
    return x if x.dtype == torch.float64 else x.float()


def wide_norm(x: Tensor) -> Tensor:
    """Norm of all of x, a scalar; summed in float32 or wider, as float16 overflows at 65504."""
    return torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))


def _copy(parameter: Tensor) -> Tensor:
    return parameter.detach().to(torch.bfloat16)
