"""torch's CUDA graphs, streams and events, as far as ``graph`` needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Captured:
    """What ``step`` launches, without running it; ``replay`` runs it."""

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
        except RuntimeError:
            capture_nothing(stream)
            raise

    def replay(self) -> None:
        """Run it on the current stream."""
        self._graph.replay()


def capture_nothing(stream: torch.cuda.Stream) -> None:
    """A capture that ends well, after one that did not.

    That one may have left torch's random numbers believing that they are captured: to be drawn by
    replays alone.
    """
    number = torch.zeros(1, device=stream.device)
    graph = torch.cuda.graph(
        torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"
    )
    with suppress(RuntimeError), torch.cuda.stream(stream), graph:
        number.add_(1)


def told_host(flag: Tensor) -> Callable[[], bool]:
    """A function that waits until the device has come to this point, and tells what flag was."""
    host, event = torch.empty((), dtype=torch.bool, pin_memory=True), torch.cuda.Event()
    host.copy_(flag, non_blocking=True)
    event.record()

    def wait() -> bool:
        event.synchronize()
        return bool(host)

    return wait


@contextmanager
def own_workspaces() -> Iterator[None]:
    """While open, what cuBLAS works in is new, and is no one else's afterwards.

    It comes from the pool of the graph that is captured, and lives as long as that. Otherwise it
    is that of the stream: of the first graph that was captured on it, and gone with that one.
    """
    clear = torch._C._cuda_clearCublasWorkspaces
    clear()
    try:
        yield
    finally:
        clear()


def on_side_stream(function: Callable[[], None], place: Callable[[], Any]) -> None:
    """Call it on the stream of a capture, behind the current one and before it."""
    current, (_, stream) = torch.cuda.current_stream(), place()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        function()
    current.wait_stream(stream)
