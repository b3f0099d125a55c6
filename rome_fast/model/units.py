"""An MLP's hidden units: the maps that feed the edited matrix, and their activation.

A unit of a plain MLP (GPT-2, NeoX, OPT) is act(g.h); one of a gated MLP (Llama, Gemma) is
act(g.h) * (p.h). h is what enters the MLP, the unit's value is one entry of the key. Which maps and
which activation these are is found by structure, and believed when they reproduce the model's own
keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rome_fast.errors import UnsupportedModelError
from rome_fast.model.activations import never_runs
from rome_fast.model.intercept import StopForwardError, hooked
from rome_fast.model.precision import widen
from rome_fast.model.spec import (
    DownProjection,
    ModelSpec,
    embedding_rows,
    input_device,
    text_config,
)
from rome_fast.model.structure import ATTENTION, sizes
from rome_fast.model.wrappers import base_modules

if TYPE_CHECKING:
    from torch import Tensor

Activation = Callable[["Tensor"], "Tensor"]

# How far the keys may be from the model's own, relative to their norm: rounding, no more.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_TOLERANCE = 3e-2


@dataclass(frozen=True, eq=False)
class UnitMap:
    """A map from h to one number a unit.

    Attributes:
        module: the linear module that computes it, perhaps with another one (Phi-3).
        first: of its outputs, the one of unit 0.
        n_units: how many there are.
    """

    module: nn.Module
    first: int
    n_units: int

    @property
    def has_bias(self) -> bool:
        return getattr(self.module, "bias", None) is not None

    def __call__(self, h: Tensor) -> Tensor:
        """[..., d_model] -> [..., n_units]."""
        outputs: Tensor = self.module(h)
        return outputs[..., self.first : self.first + self.n_units]


@dataclass(frozen=True, eq=False)
class HiddenUnits:
    """The units of the MLP that ends in ``projection``.

    Attributes:
        gate: what goes through the activation.
        up: what multiplies it; None in a plain MLP.
    """

    projection: DownProjection
    gate: UnitMap
    up: UnitMap | None
    activation: Activation

    @classmethod
    def of(cls, spec: ModelSpec, projection: DownProjection) -> HiddenUnits:
        """Find them by structure; the model runs once on a few tokens.

        Raises:
            UnsupportedModelError: the keys are not of the form above (a norm or a clamp before the
                edited matrix, a low-rank map, a router).
        """
        block = spec.blocks[projection.layer]
        maps = list(_maps(block, projection, spec.d_model))
        if maps:
            h, keys = _read(spec, projection, maps[0].module)
            for gate, up in [(m, None) for m in maps] + list(permutations(maps, 2)):
                for activation in _activations(spec, block):
                    units = cls(projection, gate, up, activation)
                    if units.reproduce(h, keys):
                        return units
        raise UnsupportedModelError(
            f"{type(spec.model).__name__} layer {projection.layer}: the input of {projection.name} "
            "is neither act(g.h) nor act(g.h) * (p.h) of what enters the MLP, so that no unit can "
            "be added"
        )

    def keys(self, h: Tensor) -> Tensor:
        """[..., d_model] -> [..., d_key], as the model computes them."""
        values = self.activation(self.gate(h))
        return values if self.up is None else values * self.up(h)

    def reproduce(self, h: Tensor, keys: Tensor) -> bool:
        """Whether these units have the keys that the model has."""
        try:
            found = self.keys(h)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
            return False
        if not isinstance(found, torch.Tensor) or found.shape != keys.shape:
            return False
        off = (widen(found) - widen(keys)).norm() / widen(keys).norm()
        return bool(off <= _TOLERANCE.get(keys.dtype, _HALF_TOLERANCE))


def _maps(block: nn.Module, projection: DownProjection, d_model: int) -> Iterator[UnitMap]:
    """Maps from the residual stream's width to the key's, beside the projection."""
    inside = dict(base_modules(block))
    [name] = [name for name, module in inside.items() if module is projection.module]
    parent = name.rpartition(".")[0]
    for path, module in inside.items():
        shape = sizes(module)
        if shape is None or shape[0] != d_model or ATTENTION.search(path):
            continue
        if parent and not path.startswith(f"{parent}."):
            continue
        d_key = projection.d_key
        if shape[1] in (d_key, 2 * d_key):
            yield from (UnitMap(module, n, d_key) for n in range(0, shape[1], d_key))


def _activations(spec: ModelSpec, block: nn.Module) -> Iterator[Activation]:
    """Functions that the block's modules hold, then those that the configuration names."""
    for _, module in base_modules(block):
        held = {**vars(module), **module._modules}
        for name, value in held.items():
            if callable(value) and not name.startswith("_") and not _has_matrix(value):
                yield value
    from transformers.activations import ACT2FN

    named = [v for v in vars(text_config(spec.model)).values() if isinstance(v, str)]
    # Code from the Hub may call a function of torch where transformers holds a module.
    for name in (*named, "silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2"):
        if name in ACT2FN:
            yield ACT2FN[name]


def _has_matrix(value: Any) -> bool:
    return isinstance(value, nn.Module) and any(p.dim() > 1 for p in value.parameters())


@torch.no_grad()
def _read(spec: ModelSpec, projection: DownProjection, entry: nn.Module) -> tuple[Tensor, Tensor]:
    """(h, keys) of a few tokens, as the model computes them."""
    seen: dict[str, Tensor] = {}

    def enter(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen["h"] = args[0]

    def end(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen["keys"] = args[0]
        raise StopForwardError

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(embedding_rows(spec.model), (2, 8), generator=generator)
    with hooked(entry, enter), hooked(projection.module, end), suppress(StopForwardError):
        spec.model(input_ids=ids.to(input_device(spec.model)), use_cache=False)
    if "keys" not in seen:
        raise never_runs(projection)
    return seen["h"], seen["keys"]
