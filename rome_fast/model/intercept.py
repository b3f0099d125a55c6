"""Context managers that read or change a model's forward; each is undone when its block ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

# Rows of the head's weight in one product.
SLICE = 1024


class StopForwardError(Exception):
    """Ends a forward pass early, once the wanted tensors have been seen."""


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """While open, ``hook(module, args, output)`` sees, and may replace, what the module returns."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def answering(module: nn.Module, answer: Any) -> Iterator[None]:
    """While open, the module returns ``answer`` and computes nothing.

    Its attributes, which models read, stay: only ``forward`` is overridden, on the instance.
    """
    with _forward(module, lambda *args, **kwargs: answer):
        yield


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own


@contextmanager
def reading_only(head: nn.Module, rows: Tensor, positions: Tensor) -> Iterator[None]:
    """While open, the head runs on [1, m, d_model], the states at (rows [m], positions [m])."""

    def run(hidden: Tensor) -> Tensor:
        chosen = hidden[rows.to(hidden.device), positions.to(hidden.device)][None]
        if type(head) is nn.Linear and plain and _slices_pay(hidden):
            return linear_in_slices(chosen, head.weight, head.bias)
        output: Tensor = own(chosen)
        return output

    # Accelerate and others replace the forward, torchao the weight: neither can be sliced.
    own = head.forward
    plain = "forward" not in vars(head) and type(getattr(head, "weight", None)) is nn.Parameter
    with _forward(head, run):
        yield


def _slices_pay(hidden: Tensor) -> bool:
    return hidden.device.type == "cpu" and hidden.dtype == torch.float32


def linear_in_slices(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear for few rows and a very long weight, whose slices stay in a core's cache.

    On a CPU, in float32, that is faster than one call on the whole (benchmarks/ops/bench_ops.py).
    """
    weights = weight.split(SLICE)
    biases = [None] * len(weights) if bias is None else bias.split(SLICE)
    slices = zip(weights, biases, strict=True)
    return torch.cat([nn.functional.linear(x, w, b) for w, b in slices], dim=-1)


@contextmanager
def only_at(module: nn.Module, rows: Tensor, positions: Tensor, is_first: Tensor) -> Iterator[None]:
    """While open, a position-wise module runs at (rows [m], positions [m]) only.

    It returns zeros everywhere else.

    Args:
        is_first: bool [m], False where a position is named again: it has one gradient, not two.
    """

    def run(*args: Tensor, **kwargs: Any) -> Tensor:
        at = rows.to(args[0].device), positions.to(args[0].device)
        output: Tensor = own(*(x[at][None] for x in args), **kwargs)
        whole = output.new_zeros(*args[0].shape[:2], output.shape[-1])
        first = is_first.to(output.device)[:, None]
        return whole.index_put(at, torch.where(first, output[0], output[0].detach()))

    own = module.forward
    with _forward(module, run):
        yield


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block returns, which is a tensor or a tuple that begins with one.

    Raises:
        TypeError: it is neither.
    """
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, torch.Tensor):
        raise TypeError(f"a block returned {type(output).__name__}")
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """A block's ``output`` with its hidden states replaced, in the same form (tensor or tuple)."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
