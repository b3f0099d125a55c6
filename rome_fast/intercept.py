"""Ways to step into a model's own forward, each undone when its block ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class StopForwardError(Exception):
    """Ends a forward pass once what was wanted of it has been seen."""


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
    own = vars(module).get("forward")
    vars(module)["forward"] = lambda *args, **kwargs: answer
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own


@contextmanager
def reading_only(head: nn.Module, rows: Tensor, positions: Tensor) -> Iterator[None]:
    """While open, the head sees [1, m, d_model], the hidden states at (rows [m], positions [m])."""

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        device = args[0].device
        return (args[0][rows.to(device), positions.to(device)][None], *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


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
    """``output`` of a block, in the form of its family, with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
