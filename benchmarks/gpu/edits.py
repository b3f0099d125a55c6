"""Edits of whole models: a warm one beside the whole-model loop, a sequence, windows.

Every precision is compared with the loop in the same precision: first by what the edit is, then by
time, in turns. What is told in a row that says nothing of the search was searched as in the first
measurement, 20 steps in 22 rows, and no search stops early; "by default" is as the library does.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.bench import PRECISIONS, Bench
from benchmarks.gpu.names import BY_DEFAULT, EXACT, WHOLE
from benchmarks.gpu.run import Row, Run
from benchmarks.gpu.timer import beside, figure, require, spread
from rome_fast.bench.own import RomeFast
from rome_fast.bench.peers import Peer
from rome_fast.bench.whole_model import WholeModel

TORCH = "rome_fast, backend torch"
# How many edits in exact order a larger window is compared with.
IN_ORDER = 16


@dataclass(frozen=True)
class Stage:
    """A row for each precision, and its share of the time."""

    kind: str
    search: str
    weight: float

    def title(self, precision: str) -> str:
        return f"{self.kind}{self.search}, {precision}"


STAGES = (
    Stage("warm edit", "", 3),
    Stage("warm edit", BY_DEFAULT, 2),
    Stage("sequence", "", 4),
    Stage("windows of 16", "", 2),
    Stage("windows of 64", "", 3),
    Stage("sequence", BY_DEFAULT, 2),
    Stage("windows of 16", BY_DEFAULT, 1),
)


def edits(run: Run, name: str, *precisions: str) -> None:
    """All of one model, a precision after the other, each row with a share of what is left."""
    warnings.simplefilter("ignore")
    stages = [(stage, precision) for precision in precisions for stage in STAGES]
    wanted = [pair for pair in stages if run.wants(pair[0].title(pair[1]))]
    if not wanted:
        return
    bench = Bench(run, name)
    run.keep("model", **bench.facts)
    ways: dict[str, Callable[..., Row]] = {
        "warm edit": warm,
        "sequence": sequence,
        "windows of 16": partial(windows, size=16),
        "windows of 64": partial(windows, size=64),
    }
    for number, (stage, precision) in enumerate(wanted):
        left = sum(other.weight for other, _ in wanted[number:])
        until = time.monotonic() + max(run.seconds_left, 0) * stage.weight / left
        arguments = bench, precision, stage.search, until
        run.attempt(stage.title(precision), ways[stage.kind], *arguments)


def warm(run: Run, bench: Bench, precision: str, search: str, until: float) -> Row:
    """One edit, made before: medians, ratios of neighbouring runs, peak memory."""
    _, _, cosine, difference = PRECISIONS[precision]
    own = RomeFast()
    ways: dict[str, Peer] = {"own": own, TORCH: RomeFast(backend="torch"), WHOLE: WholeModel()}
    with bench.as_(precision):
        found = {way: bench.agreement(own, peer, search) for way, peer in ways.items()}
        for way, agreement in found.items():
            require(f"{way}: losses", agreement["losses"], difference)
            if not search:
                require(f"{way}: 1 - cosine of dW", 1 - agreement["cosine"], 1 - cosine)
        peak, made = peak_mib(run, lambda: own.edit(bench.cases[search]))
        times = in_turns(bench, ways, search, run.pick(9, 2), until)
    rivals = {way: {**beside(times["own"], times[way], "s"), **found[way]} for way in ways}
    steps = rivals.pop("own")["steps"]
    parts = {name: figure(seconds) for name, seconds in made.seconds.items()}
    facts = {"peak_mib": peak, "steps": steps, "seconds_of_parts": parts}
    return {**spread(times["own"], "s"), "beside": rivals, **facts, "backend": bench.backend}


def in_turns(
    bench: Bench, ways: dict[str, Peer], search: str, rounds: int, until: float
) -> dict[str, list[float]]:
    """Seconds of every way; at least three rounds, or those that were asked for."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        if number >= 3 and time.monotonic() > until:
            break
        for way, peer in ways.items():
            times[way].append(peer.edit(bench.cases[search]).seconds["total"])
    return times


def windows(run: Run, bench: Bench, precision: str, search: str, until: float, *, size: int) -> Row:
    """A window of independent edits beside as many in exact order, in turns.

    Of a larger one the first 16 are edited in order, and count as often as they go into it.
    """
    n = run.pick(size, size // 16 + 1)
    requests = bench.requests[:n]
    ordered = requests[: run.pick(IN_ORDER, 2)]
    own, exact = [], []
    with bench.as_(precision):
        for number in range(3):
            if number >= 1 and time.monotonic() > until:
                break
            seconds, window = bench.edited(requests, search, order="independent", window=n)
            own.append(seconds)
            seconds, alone = bench.edited(ordered, search)
            exact.append(seconds * n / len(ordered))
            # The first of either is searched on the same weights.
            pairs = list(zip(window[0].losses, alone[0].losses, strict=not search))
            apart = max(abs(a - b) / abs(b) for a, b in (pairs[:1] if search else pairs))
            require("losses of the first request", apart, PRECISIONS[precision][3])
    # The first round has warmed both up, where there was time for more.
    own, exact = (times[1:] or times for times in (own, exact))
    facts = {**spread(own, "s"), "beside": {EXACT: beside(own, exact, "s")}}
    rate = figure(n / facts["median_s"])
    sizes = sorted({result.window for result in window})
    done = {"edits": n, "windows": sizes, "edits_per_s": rate, "backend": bench.backend}
    return {**facts, **done, "error": figure(apart), "warnings": said(window)}


def sequence(run: Run, bench: Bench, precision: str, search: str, until: float) -> Row:
    """Requests of different lengths, one after another: as many of 200 as end in time."""
    requests = bench.lengthened
    with bench.as_(precision):
        bench.edited(requests[:1], search)
        one = bench.edited(requests[:2], search)[0] / 2
        fitting = int((until - time.monotonic()) / one)
        n = max(4, min(len(requests), fitting))
        seconds, results = bench.edited(requests[:n], search)
    rate = {"seconds": figure(seconds), "edits_per_s": figure(n / seconds)}
    lengths = len({len(bench.tok(request.text)["input_ids"]) for request in requests[:n]})
    facts = {"lengths": lengths, "backend": bench.backend, "warnings": said(results)}
    return {"edits": n, **rate, **facts}


def said(results: list[Any]) -> dict[str, int]:
    """Steps that were no captured graph, or a search through the whole model, are told there."""
    return dict(Counter(text.split(":")[0] for result in results for text in result.warnings))


def peak_mib(run: Run, function: Any) -> tuple[int | None, Any]:
    """(memory of a call beyond what was allocated before it, what it returned); None on a CPU."""
    if run.device.type != "cuda":
        return None, function()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = function()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20), found
