"""The single entry to a model: an edit checks everything here once, and no later step does again.

Inside, the model is unwrapped, locked against other threads, frozen, and inspected once; the edited
weight is plain and finite, and no open Session holds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast import ops
from rome_fast.errors import UnsupportedModelError
from rome_fast.model.owner import check_free, locked
from rome_fast.model.spec import DownProjection, ModelSpec
from rome_fast.model.weights import check_not_inference
from rome_fast.model.wrappers import adapter_notes, eager

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def open_model(model: PreTrainedModel) -> Iterator[ModelSpec]:
    """While open, no other thread edits or runs the model, and it is frozen.

    Args:
        model: may be wrapped by torch.compile or PEFT.

    Raises:
        UnsupportedModelError: as ``ModelSpec.of``.
        SessionError: this very thread is inside ``session.reading()``.
    """
    spec = ModelSpec.of(model)
    with locked(model), torch.inference_mode(False), frozen(spec):
        yield spec


@contextmanager
def frozen(spec: ModelSpec) -> Iterator[None]:
    """While open: evaluation mode, no gradients to parameters, no compiled code. Undone after.

    Autocast is off, and tensors that name no device are on the CPU.

    Raises:
        UnsupportedModelError: a parameter that wants gradients was made under inference mode, where
            they could not be asked for again.
    """
    modules = list(spec.modules.values())
    training = [module for module in modules if module.training]
    wanting = {name: p for name, p in spec.parameters.items() if p.requires_grad}
    for name, parameter in wanting.items():
        check_not_inference(name, parameter)
    trainable = list(wanting.values())
    for module in training:
        module.training = False
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with eager(modules), _users_settings_aside(spec):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


@contextmanager
def _users_settings_aside(spec: ModelSpec) -> Iterator[None]:
    """While open: no autocast, and a tensor that names no device is on the CPU."""
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in sorted({p.device.type for p in spec.parameters.values()} - {"meta"}):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@dataclass(frozen=True, eq=False)
class EditSite:
    """Where an edit is written.

    Attributes:
        backend: "native" or "torch", as its device allows.
        notes: remarks for the user about the weight.
    """

    projection: DownProjection
    backend: str
    notes: tuple[str, ...]

    @classmethod
    def of(cls, spec: ModelSpec, layer: int, shared_expert: bool, backend: str) -> EditSite:
        """Find a layer's down-projection and check it; no later step checks it again.

        Raises:
            HparamsError, UnsupportedModelError, NonFiniteError: as ``ModelSpec.down_projection``;
                or other layers share the weight.
            SessionError: an open Session edits the weight.
            BackendUnavailableError: the requested backend is not available.
        """
        projection = spec.down_projection(layer, shared_expert)
        weight = projection.weight
        sharers = [i for i in spec.layers_of(weight) if i != layer]
        if sharers:
            raise UnsupportedModelError(
                f"{projection.name}.weight is also the matrix of layer "
                f"{', '.join(map(str, sharers))}, which an edit would change too: give layer "
                f"{layer} a Parameter of its own, a clone, before editing it"
            )
        check_free(weight, f"{projection.name}.weight")
        notes = adapter_notes(spec.modules.values(), weight)
        if weight.dtype == torch.float16 and weight.device.type == "cpu":
            notes.append("float16 is very slow on a CPU: load the model in float32 or bfloat16")
        return cls(projection, ops.resolve_backend(backend, weight.device.type), tuple(notes))
