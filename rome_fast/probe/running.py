"""Runs of a few tokens through a model with one place changed, to see what depends on it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rome_fast.model.intercept import StopForwardError, hooked
from rome_fast.model.spec import ModelSpec, embedding_rows, input_device

if TYPE_CHECKING:
    from torch import Tensor

N_TOKENS = 4

Hook = tuple[nn.Module, Callable[..., Any]]


def token_ids(spec: ModelSpec) -> Tensor:
    """Some ids, int64 [1, n], on the device where the model takes them."""
    ids = torch.arange(1, N_TOKENS + 1) % embedding_rows(spec.model)
    return ids[None].to(input_device(spec.model))


@torch.no_grad()
def output_of(spec: ModelSpec, *hooks: Hook) -> Tensor:
    """Logits [1, n, vocabulary], float32, with hooks in place."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.enter_context(hooked(module, hook))
        logits: Tensor = spec.model(input_ids=token_ids(spec), use_cache=False).logits
    return logits.float()


@torch.no_grad()
def seen_at(spec: ModelSpec, module: nn.Module, *hooks: Hook, entering: bool = False) -> Any:
    """A module's output, or its first input, with hooks in place; nothing behind it runs.

    None if it does not run.
    """
    seen: list[Any] = []

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
        seen.append(output if not entering else args[0] if args else kwargs["hidden_states"])
        raise StopForwardError

    if entering:
        handle = module.register_forward_pre_hook(keep, with_kwargs=True)
    else:
        handle = module.register_forward_hook(keep, with_kwargs=True)
    try:
        with suppress(StopForwardError):
            output_of(spec, *hooks)
    finally:
        handle.remove()
    return seen[0] if seen else None


def noise_like(hidden: Tensor) -> Tensor:
    """Noise of the shape and scale of the hidden states [..., d]; seeded."""
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    scale = hidden.float().square().mean().sqrt().clamp(min=1e-3)
    return noise.to(hidden.device, hidden.dtype) * scale.to(hidden.dtype)


def factor_between(result: Tensor, cause: Tensor) -> float | None:
    """The number by which ``cause`` was multiplied to give ``result``; None if by no number."""
    a, b = result.double().flatten(), cause.double().flatten()
    factor = float(a @ b / (b @ b))
    rounding = 16 * max(torch.finfo(x.dtype).eps for x in (result, cause))
    if not (a - factor * b).norm() <= max(rounding, 1e-3) * abs(factor) * b.norm():
        return None
    return factor
