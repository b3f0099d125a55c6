"""Which weights can be written to, and what to do about the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils import parametrize

from rome_fast.errors import NonFiniteError, QuantizedWeightError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Modules of torch whose hooks write the weight before each forward, and how to be rid of them.
_CURES = {
    "torch.nn.utils.prune": "torch.nn.utils.prune.remove(module, 'weight')",
    "torch.nn.utils.weight_norm": "torch.nn.utils.remove_weight_norm(module)",
    "torch.nn.utils.spectral_norm": "torch.nn.utils.remove_spectral_norm(module)",
}
_EDITABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_weight(name: str, module: nn.Module, model: PreTrainedModel) -> None:
    """Raise unless ``module.weight`` is a plain, finite matrix in memory.

    Raises:
        QuantizedWeightError: it is quantised.
        UnsupportedModelError: it is offloaded, sharded, made under inference mode, or rebuilt from
            others at each forward.
        NonFiniteError: it holds NaN or infinity.
    """
    method = _quantisation(module, model)
    if method is not None:
        raise QuantizedWeightError(
            f"{name} is quantised ({method}) and cannot be edited in place: edit the same model "
            "in bfloat16 or float32 (loaded so, or model.dequantize()) in a Session(..., "
            "form='weight'), write session.log.to_lora(path), and load that adapter on this model "
            "with PEFT"
        )
    cure = _cure_of_rebuilt(module)
    if cure is not None:
        raise UnsupportedModelError(
            f"{name} is computed from other tensors at each forward, where an edit of it would be "
            f"lost: call {cure} first, with its module"
        )
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if weight.is_meta:
        raise UnsupportedModelError(
            f"{name} is offloaded (meta device): load the model fully before editing"
        )
    check_not_inference(name, weight)
    if hasattr(weight, "placements"):
        how = ", ".join(map(repr, weight.placements))
        raise UnsupportedModelError(
            f"{name} is sharded (DTensor, {how}), and an edit needs it whole: edit the model "
            "before it is sharded, or apply the log of its edits (EditLog.apply) before that"
        )
    if type(weight) not in (nn.Parameter, torch.Tensor):
        raise UnsupportedModelError(f"{name} is a {type(weight).__name__}, not a plain Parameter")
    if not torch.isfinite(weight).all():
        raise NonFiniteError(f"{name} already holds NaN or infinity: the model is damaged")


def check_not_inference(name: str, weight: torch.Tensor) -> None:
    """Raise UnsupportedModelError if a parameter was made under inference mode."""
    if weight.is_inference():
        raise UnsupportedModelError(
            f"{name} was made under torch.inference_mode(): load the model outside of it"
        )


def _cure_of_rebuilt(module: nn.Module) -> str | None:
    """What makes the weight a parameter again; None where it is one."""
    if parametrize.is_parametrized(module, "weight"):
        return "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')"
    if "weight" in module._parameters:
        return None
    hooks = (type(hook).__module__ for hook in module._forward_pre_hooks.values())
    return next((_CURES[origin] for origin in hooks if origin in _CURES), None)


def _quantisation(module: nn.Module, model: PreTrainedModel) -> str | None:
    """How a linear map's weight is quantised; None where it is not.

    A quantised module has no ``weight`` (GPTQ, AWQ, HQQ), or one that holds packed or 8-bit numbers
    (bitsandbytes, FP8), or a tensor subclass that only reports a float dtype (torchao).
    """
    weight = getattr(module, "weight", None)
    kind: type = type(module)
    if isinstance(weight, torch.Tensor) and weight.dtype in _EDITABLE and weight.dim() == 2:
        kind = type(weight)
        if kind.__module__.partition(".")[0] == "torch":
            return None
    config = getattr(model.config, "quantization_config", None) or {}
    settings = config if isinstance(config, dict) else vars(config)
    method = settings.get("quant_method") or kind.__module__.partition(".")[0]
    return f"{getattr(method, 'value', method)}, {kind.__name__}"
