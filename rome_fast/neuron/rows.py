"""Rows of hidden units: what is added to the maps of an MLP so that an edit is one unit more.

Gated MLP (SwiGLU, GeGLU): gate row a (w - gamma c), up row c / s, down column delta.
Plain MLP: row a (w - gamma c), down column delta / s. A bias stands for c where the map has one:
c.h = 1 on every token only as far as text says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import UnsupportedModelError
from rome_fast.neuron.threshold import Threshold

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.model.units import HiddenUnits

# Of an edit, what may reach a token that does not respond to it.
MOST_LEFT = 0.01


@dataclass(frozen=True, eq=False)
class UnitRows:
    """n units.

    Attributes:
        gate: [n, d_model], rows of the map that goes through the activation.
        gate_bias: [n], or None where that map has no bias.
        up, up_bias: of the map that multiplies; None in a plain MLP.
        down: [n, d_value], columns of the down-projection.
    """

    gate: Tensor
    gate_bias: Tensor | None
    up: Tensor | None
    up_bias: Tensor | None
    down: Tensor

    def to(self, *args: object) -> UnitRows:
        """The same as ``Tensor.to`` for each of them."""
        values = (getattr(self, field.name) for field in fields(self))
        return UnitRows(*(None if v is None else v.to(*args) for v in values))  # type: ignore[arg-type]

    def answer(self, units: HiddenUnits, h: Tensor) -> Tensor:
        """What the units add to the MLP's output: [..., d_model] -> [..., d_value]."""
        values = units.activation(_linear(h, self.gate, self.gate_bias))
        if self.up is not None:
            values = values * _linear(h, self.up, self.up_bias)
        return values @ self.down


def unit_rows(
    units: HiddenUnits,
    constant: Tensor,
    directions: Tensor,
    thresholds: Sequence[Threshold],
    scales: Sequence[float],
    deltas: Tensor,
) -> UnitRows:
    """The rows of n edits, float64.

    Args:
        constant: c, [d_model].
        directions: w, [n, d_model].
        scales: what each unit's activation is divided by.
        deltas: what each edit adds to the value of its subject, [n, d_value].
    """
    slopes = directions.new_tensor([t.slope for t in thresholds])[:, None]
    at = directions.new_tensor([t.at for t in thresholds])[:, None]
    shares = directions.new_tensor([1 / scale for scale in scales])[:, None]
    _check_silence(units, slopes * at, shares)
    gate, gate_bias = slopes * directions, None
    if units.gate.has_bias:
        gate_bias = -(slopes * at)[:, 0]
    else:
        gate = gate - slopes * at * constant
    if units.up is None:
        return UnitRows(gate, gate_bias, None, None, deltas * shares)
    if units.up.has_bias:
        return UnitRows(gate, gate_bias, torch.zeros_like(gate), shares[:, 0], deltas)
    return UnitRows(gate, gate_bias, shares * constant, None, deltas)


def _check_silence(units: HiddenUnits, depths: Tensor, shares: Tensor) -> None:
    """Where w.h is 0, as it is of most tokens, a unit must say nothing.

    Raises:
        UnsupportedModelError: the activation is not flat below 0 (xIELU).
    """
    left = float((units.activation(-depths) * shares).abs().max())
    if left > MOST_LEFT:
        raise UnsupportedModelError(
            f"{units.projection.name}: {left:.1%} of an edit would reach all other tokens, since "
            "the activation of this MLP is not flat below zero"
        )


def _linear(h: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    values = h @ rows.T
    return values if bias is None else values + bias
