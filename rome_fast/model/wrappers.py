"""What torch.compile and PEFT put around a model or its modules, and the plain model inside.

Names are those of the plain model everywhere, so that a log made on a wrapped model applies to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

# Names of the wrapped child: under torch.compile; in PEFT's layer with an adapter; in PEFT's module
# that is trained whole.
_INNER = ("_orig_mod", "base_layer", "original_module")


def unwrapped(model: Any) -> PreTrainedModel:
    """The transformers model itself; an adapter's layers stay in it, and so does compiled code.

    Raises:
        UnsupportedModelError: a prompt-learning adapter puts virtual tokens before every prompt.
    """
    *_, plain = shells(model)
    return plain


def shells(model: Any) -> Iterator[Any]:
    """The model as given, then what it wraps, and so on inwards. Raises as ``unwrapped``."""
    yield model
    if "_orig_mod" in model._modules:
        yield from shells(model._orig_mod)
    elif callable(getattr(model, "get_base_model", None)):
        for name, config in model.peft_config.items():
            if config.is_prompt_learning:
                raise UnsupportedModelError(
                    f"{type(model).__name__} has the prompt-learning adapter {name!r} "
                    f"({config.peft_type.value}), whose virtual tokens stand before every "
                    "prompt: edit model.get_base_model(), without it"
                )
        yield from shells(model.get_base_model())


def plain_name(name: str) -> str:
    """A module's or parameter's path in the plain model; an adapter's own path is unchanged."""
    return ".".join(part for part in name.split(".") if part not in _INNER)


def inner(module: nn.Module) -> nn.Module:
    """The module inside a wrapper; any other module is returned unchanged."""
    children = module._modules
    for name in _INNER:
        child = children.get(name)
        if child is not None:
            return inner(child)
    return module


def base_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """``named_modules()`` of the plain model: no wrapper, nothing of an adapter, plain names."""
    module = inner(module)
    yield name, module
    for child_name, child in module.named_children():
        yield from base_modules(child, f"{name}.{child_name}" if name else child_name)


def base_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """``named_parameters()`` of the plain model; tied ones once, under the first name."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, module in base_modules(model):
        for own, parameter in module.named_parameters(name, recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found[own] = parameter
    return found


def adapter_notes(modules: Iterable[nn.Module], weight: torch.Tensor) -> list[str]:
    """Notes for the user about PEFT's adapters among the modules; empty if there is none."""
    layers = [m for m in modules if "base_layer" in m._modules]
    if not layers:
        return []
    names = sorted({name for layer in layers for name in getattr(layer, "active_adapters", ())})
    adapter = f"the PEFT adapter ({', '.join(names)})"
    edited = [m for m in layers if inner(m).weight is weight]
    if any(getattr(layer, "merged", False) for layer in edited):
        return [f"{adapter} is merged into the edited weight; the edit stays when it is unmerged"]
    return [f"the base model's weight was edited; {adapter} stays on top"]


def eager(modules: Iterable[nn.Module]) -> AbstractContextManager[Any]:
    """While open, modules run eagerly: compiled code ignores hooks, and compiling would not pay."""
    if any(m._compiled_call_impl or "_orig_mod" in m._modules for m in modules):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
