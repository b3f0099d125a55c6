"""Where the time of one edit goes, part by part, beside what each part's arithmetic takes.

The edit is rome_fast's own with a clock at the borders of its parts. A GPU is waited for there, and
no step is captured as a graph: its parts are those of a search that runs step by step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rome_fast import editor
from rome_fast.bench.own import RomeFast
from rome_fast.value import graph
from rome_fast.value.context_states import FirstPasses
from rome_fast.value.objective import Objective
from rome_fast.value.optimize import SOLVERS
from rome_fast.value.search import Search

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.bench.case import Case
    from rome_fast.bench.floor import Floor
    from rome_fast.bench.measure import Comparison

# What an edit is made of, in its order. "set-up" makes the suffix forward and sees that it is
# exact; "solver" is what finds the next offset; "update" solves with C and writes.
PARTS = (
    *("first pass", "set-up", "forward", "head", "loss", "head backward", "backward", "solver"),
    *("update", "read", "rest"),
)


@dataclass(frozen=True)
class Part:
    """One part of an edit.

    Attributes:
        seconds: of an edit, all steps together; the median of the rounds.
        floor: what its arithmetic takes at the rate of a matrix product; 0 where it has none.
    """

    name: str
    seconds: float
    floor: float


@dataclass(frozen=True)
class Parts:
    """All parts of an edit.

    Attributes:
        in_python: the share of an edit's time that is spent outside of torch's operators, on a
            CPU; None on a GPU, which works on while Python does.
    """

    parts: tuple[Part, ...]
    in_python: float | None


def measure_parts(case: Case, compared: Comparison, rounds: int) -> Parts:
    """Take the edit of a comparison apart, so many times; the weights keep their bits."""
    runs: list[dict[str, float]] = []
    for _ in range(rounds):
        clock = Clock(case)
        with clock.running():
            RomeFast().edit(case)
            clock.mark("rest")
        runs.append(clock.seconds)
    flops = _flops(compared.floor, compared.rows[0].n_steps)
    seconds = {name: statistics.median(run[name] for run in runs) for name in PARTS}
    rate = compared.flops_per_s
    parts = [Part(name, seconds[name], flops.get(name, 0.0) / rate) for name in PARTS]
    return Parts(tuple(parts), _share_in_python(case, sum(seconds.values())))


class Clock:
    """Seconds by part: each mark adds the time since the last one to a part."""

    def __init__(self, case: Case) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._head = case.model.get_output_embeddings()
        self._device, self._is_searching = case.model.device, False
        self._last = time.perf_counter()

    def mark(self, part: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now

    @contextmanager
    def running(self) -> Iterator[None]:
        """While open, edits are marked where their parts begin and end."""
        with ExitStack() as stack:
            for owner, name, part in (
                (FirstPasses, "run", "first pass"),
                (Search, "__init__", "set-up"),
                (Objective, "__call__", "loss"),
                (editor, "apply_update_", "update"),
                (editor, "apply_updates_", "update"),
                (editor, "read_targets", "read"),
            ):
                stack.enter_context(_replaced(owner, name, partial(self._timed, part=part)))
            for solver in SOLVERS.values():
                stack.enter_context(_replaced(solver, "step", self._step))
            stack.enter_context(_replaced(Search, "logits", self._logits))
            stack.enter_context(_replaced(graph, "is_wanted", lambda _: lambda *_: False))
            if self._head is not None:
                handles = (
                    self._head.register_forward_pre_hook(self._enter_head),
                    self._head.register_forward_hook(self._leave_head),
                )
                stack.callback(lambda: [handle.remove() for handle in handles])
            self._last = time.perf_counter()
            yield

    def _timed(self, plain: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.mark("rest")
            result = plain(*args, **kwargs)
            self.mark(part)
            return result

        return run

    def _step(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """What lies between the loss and a step is the backward."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.mark("backward")
            plain(*args, **kwargs)
            self.mark("solver")

        return run

    def _logits(self, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            self.mark("rest")
            self._is_searching = True
            try:
                logits = plain(*args, **kwargs)
            finally:
                self._is_searching = False
            self.mark("forward")
            return logits

        return run

    def _enter_head(self, module: Any, args: tuple[Tensor, ...]) -> None:
        if not self._is_searching:
            return
        self.mark("forward")
        if args[0].requires_grad:
            args[0].register_hook(lambda _: self.mark("head backward"))

    def _leave_head(self, module: Any, args: Any, output: Tensor) -> None:
        if self._is_searching:
            self.mark("head")


@contextmanager
def _replaced(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    plain = getattr(owner, name)
    setattr(owner, name, wrap(plain))
    try:
        yield
    finally:
        setattr(owner, name, plain)


def _flops(floor: Floor, n_steps: int) -> dict[str, float]:
    """FLOPs by part. A search runs one backward fewer than forwards."""
    backwards = (n_steps - 1) / (2 * n_steps - 1)
    return {
        "first pass": floor.forward,
        "forward": floor.loop * (1 - backwards),
        "backward": floor.loop * backwards,
        "head": floor.head * (1 - backwards),
        "head backward": floor.head * backwards,
        "update": floor.solve + floor.update,
    }


def _share_in_python(case: Case, seconds: float) -> float | None:
    if case.model.device.type != "cpu":
        return None
    operators = OperatorTime()
    with operators:
        RomeFast().edit(case)
    return max(0.0, 1 - operators.seconds / seconds)


class OperatorTime(TorchDispatchMode):
    """Seconds that the operators take which are called while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        began = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.seconds += time.perf_counter() - began
        return result
