"""torch's CUDA graphs, streams and events, as far as ``graph`` needs them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from torch import Tensor, nn


# What torch says of a wait; it also says, once, that this mode is a prototype.
_WAIT = "called a synchronizing"

# Graphs whose capture has failed, and why. torch's allocator goes on asking them whose memory it
# gives out, so that they live on; it may go on recording, so that nothing more is captured.
_failed: list[tuple[torch.cuda.CUDAGraph, str]] = []


class Captured:
    """A CUDA graph of what ``step`` launches: capturing does not run it, ``replay`` does.

    Raises:
        RuntimeError: the capture has failed, or another one before it in this process.
    """

    def __init__(self, step: Callable[[], Any], place: Callable[[], Any]) -> None:
        if _failed:
            raise RuntimeError(
                f"the capture of a graph has failed in this process: {_failed[0][1]}"
            )
        self._graph = torch.cuda.CUDAGraph()
        pool, stream = place()
        # While a capture is under way, torch frees no memory that it has cached.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        try:
            with torch.cuda.stream(stream), own_workspaces():
                # Other threads may use the device meanwhile.
                self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                with _ended(self._graph):
                    step()
        except torch.OutOfMemoryError:
            raise  # of the step: its capture was ended well
        except RuntimeError as error:
            _failed.append((self._graph, str(error).splitlines()[0]))
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(stream.device_index, pool)
            raise

    def replay(self) -> None:
        """Run it on the current stream."""
        self._graph.replay()


@contextmanager
def _ended(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """End the capture with the block; of two errors the block's is the one that says why.

    But for lack of memory, which ends no capture: what then cannot be ended has failed.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        graph.capture_end()
        raise
    except BaseException:
        with suppress(RuntimeError):
            graph.capture_end()
        raise
    graph.capture_end()


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


def rehearsed(step: Callable[[], None], place: Callable[[], Any]) -> None:
    """Make a step on the capture stream, after the current stream's work and before its next.

    Libraries do their set-up of a first use, which cannot be captured.

    Raises:
        RuntimeError: the step waits for the device. A capture would fail of it, and leave torch in
            a state in which the next one fails as well.
    """
    current, (_, stream) = torch.cuda.current_stream(), place()
    stream.wait_stream(current)
    with torch.cuda.stream(stream), waits_told() as told:
        step()
    current.wait_stream(stream)
    if told:
        raise RuntimeError(f"a step of the search waits for the device: {told[0]}")


@contextmanager
def waits_told() -> Iterator[list[str]]:
    """Yield a list that holds, once the block has ended, what torch says of the waits in it.

    torch is told to warn, not to raise: the setting is the process's, and other threads may wait.
    """
    said: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield said
        finally:
            torch.cuda.set_sync_debug_mode(before)
    texts = (str(warning.message).splitlines()[0] for warning in caught)
    said += [text for text in texts if _WAIT in text]
