"""The units written into the model's own matrices: a wider MLP, that any program loads.

A checkpoint has one number of hidden units for all layers: those that are not edited get units of
zeros, which add nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import nn

from rome_fast.beside.module import Beside
from rome_fast.errors import InvalidArgumentError, UnsupportedModelError
from rome_fast.model.open_model import open_model
from rome_fast.model.spec import ModelSpec, text_config
from rome_fast.model.structure import is_conv1d
from rome_fast.model.units import HiddenUnits, UnitMap
from rome_fast.model.wrappers import base_modules, unwrapped

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from rome_fast.beside.rows import UnitRows

# What families call the number of hidden units in their configuration.
_SIZES = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
# The field in which a widened model keeps whose its units are.
_MARK = "rome_fast"
_Part = tuple[UnitMap, "Tensor | None", "Tensor | None"]


def widened(model: PreTrainedModel, multiple: int = 64) -> PreTrainedModel:
    """A copy of the model with its neurons as units of its own, and zeros in all other layers.

    The model itself where nothing stands beside it.

    Its configuration says under ``rome_fast`` how many units were the model's own, and how many
    are edits of which layer.

    Args:
        multiple: the number of units is rounded up to one of it, as kernels and tensor
            parallelism want.

    Raises:
        UnsupportedModelError: a gate stands beside a layer, which no checkpoint can hold; the
            configuration has no number of hidden units; or not all layers have the same, as in a
            mixture of experts.
        InvalidArgumentError: ``multiple`` is no number of units.
    """
    if type(multiple) is not int or multiple < 1:
        raise InvalidArgumentError(
            f"multiple must be a whole number of 1 or more, got {multiple!r}"
        )
    plain = unwrapped(model)
    found = [module for _, module in base_modules(plain) if isinstance(module, Beside)]
    besides = {beside.units.projection.layer: beside for beside in found}
    if not besides:
        return plain
    _check_no_gate(besides)
    with ExitStack() as stack:
        rows = {layer: beside.rows("neuron") for layer, beside in besides.items()}
        for beside in besides.values():
            stack.enter_context(beside.holding([]))
        made = copy.deepcopy(plain)
    for _, module in list(base_modules(made)):
        if isinstance(module, Beside):
            module.set([])
    with open_model(made) as spec:
        _widen_layers_(spec, rows, multiple)
    return made


def _widen_layers_(spec: ModelSpec, rows: dict[int, UnitRows], multiple: int) -> None:
    units = [HiddenUnits.of(spec, spec.down_projection(i)) for i in range(spec.n_layers)]
    n_units = units[next(iter(rows))].projection.d_key
    for i, here in enumerate(units):
        if here.projection.d_key != n_units:
            raise UnsupportedModelError(
                f"{type(spec.model).__name__} cannot be widened: layer {i} has "
                f"{here.projection.d_key} hidden units, others have {n_units}"
            )
    size = _size_in(spec.model, n_units)
    most = max(len(r.gate) for r in rows.values())
    n_added = -(-(n_units + most) // multiple) * multiple - n_units
    for i, here in enumerate(units):
        _widen_(here, rows.get(i), n_added)
    setattr(text_config(spec.model), size, n_units + n_added)
    before = getattr(spec.model.config, _MARK, {"own_units": n_units, "edits": {}})
    edits = dict(before["edits"])
    for layer, r in rows.items():
        edits[str(layer)] = edits.get(str(layer), 0) + len(r.gate)
    setattr(spec.model.config, _MARK, {**before, "edits": edits})


def _check_no_gate(besides: Mapping[int, Beside]) -> None:
    for layer, beside in besides.items():
        n_gates = sum(offset.form == "gate" for offset in beside.offsets)
        if n_gates:
            raise UnsupportedModelError(
                f"{n_gates} gates stand beside layer {layer}, which no checkpoint can hold: save "
                "the log, which rome_fast.attach(model, file) loads, or take them as neurons, "
                'log.as_form("neuron", model, tok)'
            )


def _size_in(model: PreTrainedModel, n_units: int) -> str:
    """The field of the configuration that holds the number of hidden units."""
    config = text_config(model)
    for name in _SIZES:
        if getattr(config, name, -1) in (n_units, None):
            return name
    raise UnsupportedModelError(
        f"{type(model).__name__} cannot be widened: none of {', '.join(_SIZES)} in its "
        f"configuration says that it has {n_units} hidden units"
    )


@torch.no_grad()
def _widen_(units: HiddenUnits, rows: UnitRows | None, n_added: int) -> None:
    """Add the rows, and zeros, to one layer's matrices."""
    given: list[Tensor | None] = [None] * 5
    if rows is not None:
        given = [rows.gate, rows.gate_bias, rows.up, rows.up_bias, rows.down]
    parts: list[_Part] = [(units.gate, given[0], given[1])]
    if units.up is not None:
        parts.append((units.up, given[2], given[3]))
    for module in {id(part[0].module): part[0].module for part in parts}.values():
        _widen_map_(module, [part for part in parts if part[0].module is module], n_added)
    down, weight = units.projection.module, units.projection.weight
    columns = _padded(given[4], n_added, weight, units.projection.d_value)
    if is_conv1d(down):
        _replace_(down, torch.cat([weight, columns]))
    else:
        _replace_(down, torch.cat([weight, columns.T], 1))


def _widen_map_(module: nn.Module, parts: list[_Part], n_added: int) -> None:
    """A map with more outputs; where two maps lie in one module, each gets its own at its end."""
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, torch.Tensor)
    matrix = weight.T if is_conv1d(module) else weight
    found, biases = [], []
    for unit_map, rows, own in sorted(parts, key=lambda part: part[0].first):
        span = slice(unit_map.first, unit_map.first + unit_map.n_units)
        found += [matrix[span], _padded(rows, n_added, weight, matrix.shape[1])]
        if bias is not None:
            biases += [bias[span], _padded(own, n_added, bias)]
    wide = torch.cat(found)
    _replace_(module, wide.T if is_conv1d(module) else wide)
    if bias is not None:
        module.bias = nn.Parameter(torch.cat(biases), requires_grad=bias.requires_grad)


def _padded(rows: Tensor | None, n: int, like: Tensor, *width: int) -> Tensor:
    """Rows [m, *width] in the dtype of ``like``, and zeros up to n of them."""
    zeros = like.new_zeros(n, *width)
    return zeros if rows is None else torch.cat([rows.to(like), zeros[len(rows) :]])


def _replace_(module: nn.Module, weight: Tensor) -> None:
    """Another matrix, and what the module says of its size."""
    old = module.weight
    assert isinstance(old, torch.Tensor)
    module.weight = nn.Parameter(weight.contiguous(), requires_grad=old.requires_grad)
    names = ("nx", "nf") if is_conv1d(module) else ("out_features", "in_features")
    for name, size in zip(names, weight.shape, strict=True):
        setattr(module, name, int(size))
