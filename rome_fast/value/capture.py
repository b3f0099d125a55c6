"""torch's CUDA graphs, streams and events, as far as ``graph`` needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from torch import Tensor, nn


class Captured:
    """A CUDA graph of what ``step`` launches: capturing does not run it, ``replay`` does."""

    def __init__(self, step: Callable[[], Any], place: Callable[[], Any]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        pool, stream = place()
        # Other threads may use the device meanwhile.
        graph = torch.cuda.graph(
            self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"
        )
        try:
            # torch.cuda.graph stays on its stream where capturing fails.
            with torch.cuda.stream(stream), own_workspaces(), graph:
                step()
        except RuntimeError as error:
            capture_nothing(stream)
            # The end of a capture that was broken off fails as well, and says nothing of why.
            if isinstance(error.__context__, RuntimeError):
                raise error.__context__ from None
            raise

    def replay(self) -> None:
        """Run it on the current stream."""
        self._graph.replay()


def capture_nothing(stream: torch.cuda.Stream) -> None:
    """Make a capture that succeeds, after one that has failed.

    The failed one may have left torch's random number generator in its capture mode, in which only
    replays can draw numbers.
    """
    number = torch.zeros(1, device=stream.device)
    graph = torch.cuda.graph(
        torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"
    )
    with suppress(RuntimeError), torch.cuda.stream(stream), graph:
        number.add_(1)


@dataclass(frozen=True)
class Refusal:
    """Why a step cannot be captured, with the hooks that the model's blocks had then."""

    reason: str
    hooks: frozenset[int]


def hooks_of(blocks: Iterable[nn.Module]) -> frozenset[int]:
    """What runs with them besides their own code: torch's numbers of their forward hooks."""
    modules = (module for block in blocks for module in block.modules())
    return frozenset(
        number
        for module in modules
        for number in (*module._forward_hooks, *module._forward_pre_hooks)
    )


class NumbersFilled(TorchFunctionMode):
    """While open, ``torch.tensor(number, device=...)`` fills in the number on the device.

    It copies from the host otherwise, which ends a capture. transformers 5.17 does so in every
    mask of eager attention (GPT-J).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.tensor and args and isinstance(args[0], bool | int | float):
            func, args = torch.full, ((), *args)
        return func(*args, **(kwargs or {}))


def told_host(flag: Tensor) -> Callable[[], bool]:
    """Copy ``flag`` to the host; returns a function that waits for the copy and gives its value."""
    host, event = torch.empty((), dtype=torch.bool, pin_memory=True), torch.cuda.Event()
    host.copy_(flag, non_blocking=True)
    event.record()

    def wait() -> bool:
        event.synchronize()
        return bool(host)

    return wait


@contextmanager
def own_workspaces() -> Iterator[None]:
    """While open, cuBLAS uses a new workspace, which nothing else uses afterwards.

    It comes from the pool of the captured graph, and lives as long as that. Otherwise cuBLAS reuses
    the stream's workspace, which is freed with the first graph that was captured on the stream.
    """
    clear = torch._C._cuda_clearCublasWorkspaces
    clear()
    try:
        yield
    finally:
        clear()


def on_side_stream(function: Callable[[], None], place: Callable[[], Any]) -> None:
    """Call it on the capture stream, after the current stream's work and before its next."""
    current, (_, stream) = torch.cuda.current_stream(), place()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        function()
    current.wait_stream(stream)
