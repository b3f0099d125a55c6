"""Device time of what competes, in turns, each with a cold cache, after its output was checked."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.gpu.names import COPY
from benchmarks.gpu.run import MismatchError, Run

# Larger than any card's cache. It is read and not written: what is written would have to leave the
# cache while the next thing is timed.
SWEPT_BYTES = 2**30

# Some two milliseconds, in which a call is queued: an event measures the device and not Python.
WAIT_CYCLES = 4_000_000


class Timer:
    """Milliseconds of a call, by CUDA events, or on a CPU by the wall clock."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        if self._is_cuda:
            self._swept = torch.zeros(SWEPT_BYTES // 4, device=device)

    def milliseconds(self, function: Callable[[], object]) -> float:
        if not self._is_cuda:
            begin = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - begin)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._swept.sum()
        torch.cuda._sleep(WAIT_CYCLES)
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def in_turns(
        self, ways: Mapping[str, Callable[[], object]], rounds: int, deadline: float
    ) -> dict[str, list[float]]:
        """Milliseconds of each way; at least two rounds, then as many as end in time."""
        for function in ways.values():
            function()
            function()
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            if number >= 2 and time.monotonic() > deadline:
                break
            for name, function in ways.items():
                times[name].append(self.milliseconds(function))
        return times


def spread(values: Sequence[float], unit: str = "ms") -> dict[str, Any]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else 3 * [values[0]]
    return {
        f"median_{unit}": figure(middle),
        f"quartiles_{unit}": [figure(low), figure(high)],
        "rounds": len(values),
    }


def beside(own: Sequence[float], other: Sequence[float], unit: str = "ms") -> dict[str, Any]:
    """A rival's times, and the median of (its time) / (own time) over neighbouring runs."""
    ratios = spread([b / a for a, b in zip(own, other, strict=True)], "ratio")
    return {
        **spread(other, unit),
        "ratio": ratios["median_ratio"],
        "ratio_quartiles": ratios["quartiles_ratio"],
    }


def figure(value: float) -> float:
    """Five digits: files are read by people too."""
    return float(f"{value:.5g}")


def compare(
    run: Run,
    own: Callable[[], object],
    rivals: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    n_bytes: int = 0,
) -> dict[str, Any]:
    """Time ``own`` and its rivals in turns.

    Args:
        n_bytes: what ``own`` has to read and write; a copy that moves as many is then a rival,
            and its ratio is the share of the copy's bandwidth that ``own`` reaches.
    """
    ways: dict[str, Callable[[], object]] = {"own": own, **rivals}
    facts: dict[str, Any] = {}
    if n_bytes:
        # Of random bytes: some cards compress what is all zero.
        size, byte = max(1, n_bytes // 2), torch.uint8
        source = torch.randint(256, (size,), dtype=byte, device=run.device)
        target = torch.empty_like(source)
        ways[COPY] = lambda: target.copy_(source)
        facts["bytes"] = n_bytes
    times = Timer(run.device).in_turns(ways, run.pick(rounds, 3), run.deadline)
    others = {name: beside(times["own"], times[name]) for name in ways if name != "own"}
    facts.update(spread(times["own"]), beside=others)
    if n_bytes:
        facts["gb_per_s"] = figure(n_bytes / 1e6 / facts["median_ms"])
    return facts


def require(what: str, error: float, tolerance: float) -> float:
    """The relative error, if it is within its tolerance (NaN never is).

    Raises:
        MismatchError: it is not.
    """
    if not error <= tolerance:
        raise MismatchError(f"{what}: relative error {error:.3g} > {tolerance:g}: not timed")
    return figure(error)


def relative_error(found: torch.Tensor, reference: torch.Tensor) -> float:
    """||found - reference|| / ||reference||, computed in float64."""
    wanted = reference.double()
    return float((found.double() - wanted).norm() / wanted.norm())
