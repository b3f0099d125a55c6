"""Problems of the shapes that are edited: a weight, a second moment and its factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.roofline import random
from benchmarks.gpu.run import Run


@dataclass(frozen=True)
class Shape:
    """A down-projection as a model stores it."""

    d_value: int
    d_key: int
    weight_layout: str

    def miniature(self) -> Shape:
        return Shape(self.d_value // 100, self.d_key // 100, self.weight_layout)


SHAPES = {
    "gpt2-xl": Shape(1600, 6400, "in_out"),
    "llama-3-8b": Shape(4096, 14336, "out_in"),
    "gpt-j-6b": Shape(4096, 16384, "out_in"),
}


def shape_of(run: Run, name: str) -> Shape:
    return run.pick(SHAPES[name], SHAPES[name].miniature())


def well_conditioned(run: Run, d: int) -> Any:
    """C = E[k k^T] of twice as many keys as it is wide and a unit ridge, [d, d] float64."""
    keys = random(run, 2 * d, d, seed=d)
    moment = (keys.T @ keys).double().div_(len(keys))
    moment.diagonal().add_(1)
    return (moment + moment.T) / 2


def weight_of(run: Run, shape: Shape, dtype: torch.dtype) -> Any:
    """[d_value, d_key] or its transpose, as it is stored."""
    sizes = (shape.d_value, shape.d_key)
    stored = sizes if shape.weight_layout == "out_in" else sizes[::-1]
    return random(run, *stored, dtype=dtype, seed=3)


def out_in(weight: torch.Tensor, shape: Shape) -> torch.Tensor:
    """As [d_value, d_key], whichever way it is stored."""
    return weight if shape.weight_layout == "out_in" else weight.T
