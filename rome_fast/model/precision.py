"""Precision: half precision is widened before sums and squares; bfloat16 copies of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rome_fast.model.memory import free_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.model.spec import DownProjection, ModelSpec


def bfloat16_pays(spec: ModelSpec, projection: DownProjection) -> bool:
    """Whether products of bfloat16 copies are faster than the model's own, and the copies fit.

    So on processors with instructions for them (AVX512-BF16, AMX), which multiply twice as fast.
    """
    weight = projection.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    is_supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    # torch's own kernels follow ATEN_CPU_CAPABILITY, and so must the choice between them.
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not is_supported():
        return False
    copies = 2 * sum(parameter.numel() for parameter in spec.parameters.values())
    free = free_bytes(weight.device)
    return free is None or 2 * copies <= free


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
