"""Rows of hidden units: what is added to the maps of an MLP so that a subject is one unit more.

Gated MLP (SwiGLU, GeGLU): gate row a (w - gamma c), up row p / s, down column delta.
Plain MLP: row a (w - gamma c), down column delta / s, where w has a quarter of p in it. A bias
stands for c where the map has one: c.h = 1 on every token only as far as text says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast.beside.directions import directions
from rome_fast.beside.group import apart_from
from rome_fast.beside.threshold import SILENT, Threshold
from rome_fast.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.beside.entry import Entry
    from rome_fast.beside.group import Subject
    from rome_fast.model.units import Activation, HiddenUnits

# How far a unit's threshold lies above the loudest of everything else, as a share of what is left.
GATED_SHARE, PLAIN_SHARE = 0.5, 0.35
# Of w in the one row that a plain MLP has; the rest is p.
PLAIN_W = 0.75
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

    def activity(self, activation: Activation, h: Tensor) -> Tensor:
        """The units' values, [..., d_model] -> [..., n]."""
        values = activation(_linear(h, self.gate, self.gate_bias))
        return values if self.up is None else values * _linear(h, self.up, self.up_bias)

    def answer(self, activation: Activation, h: Tensor) -> Tensor:
        """What the units add to the MLP's output: [..., d_model] -> [..., d_value]."""
        return self.activity(activation, h) @ self.down


def unit_rows(units: HiddenUnits, entry: Entry, subjects: Sequence[Subject]) -> UnitRows:
    """The rows of all subjects, float64, on the CPU.

    Raises:
        UnsupportedModelError: the activation is not flat below 0 (xIELU).
    """
    own = [subject.own for subject in subjects]
    distinct = apart_from(subjects)
    found, p = directions(entry, own, distinct), torch.stack([s.apart for s in subjects])
    share = GATED_SHARE
    if units.up is None:
        found, share = torch.lerp(p, found, PLAIN_W), PLAIN_SHARE
    thresholds = _thresholds(entry, own, found, distinct, share)
    slopes = found.new_tensor([t.slope for t in thresholds])[:, None]
    at = found.new_tensor([t.at for t in thresholds])[:, None]
    activation = units.activation
    inputs = [s * (rows @ w - t) for rows, w, s, t in zip(own, found, slopes, at, strict=True)]
    values = [activation(x) for x in inputs]
    if units.up is not None:
        values = [v * (rows @ q) for v, rows, q in zip(values, own, p, strict=True)]
    shares = 1 / torch.stack([v.mean() for v in values])[:, None]
    _check_silence(units, slopes * at, shares)
    gate, gate_bias = slopes * found, None
    if units.gate.has_bias:
        gate_bias = -(slopes * at)[:, 0]
    else:
        gate = gate - slopes * at * entry.constant.double()
    deltas = torch.stack([subject.delta.double() for subject in subjects])
    if units.up is None:
        return UnitRows(gate, gate_bias, None, None, deltas * shares)
    up_bias = deltas.new_zeros(len(deltas)) if units.up.has_bias else None
    return UnitRows(gate, gate_bias, shares * p, up_bias, deltas)


def is_silent(activation: Activation) -> bool:
    """Whether it is flat below zero (SiLU, GELU, ReLU; not xIELU)."""
    return bool(activation(torch.tensor(-SILENT)).abs() < MOST_LEFT)


def _thresholds(
    entry: Entry, own: Sequence[Tensor], found: Tensor, distinct: Tensor, share: float
) -> list[Threshold]:
    """Each above its responses to text, and to the subjects that it is to be told apart from."""
    text = (entry.sample.double() @ found.T).max(0).values
    means = torch.stack([rows.mean(0) for rows in own])
    others = (means @ found.T).masked_fill(~distinct.T, -torch.inf).max(0).values
    return [Threshold.above(pair, share) for pair in torch.stack([text, others], 1)]


def _check_silence(units: HiddenUnits, depths: Tensor, shares: Tensor) -> None:
    """Where w.h is 0, as it is of most tokens, a unit must say nothing."""
    left = float((units.activation(-depths) * shares).abs().max())
    if left > MOST_LEFT:
        raise UnsupportedModelError(
            f"{units.projection.name}: {left:.1%} of an edit would reach all other tokens, since "
            "the activation of this MLP is not flat below zero: use form='gate' or 'weight'"
        )


def _linear(h: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    values = h @ rows.T
    return values if bias is None else values + bias
