"""The first edit of a process, with the model on the device and C factored, beside later ones."""

from __future__ import annotations

import warnings

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.run import Row, Run
from benchmarks.gpu.timer import figure, spread
from rome_fast.bench.own import RomeFast


def first_edit(run: Run, name: str, precision: str) -> None:
    """A part of its own, so that nothing was edited in its process before."""
    warnings.simplefilter("ignore")
    run.attempt(f"first edit, {precision}", _first, name, precision)


def _first(run: Run, name: str, precision: str) -> Row:
    """What it does once, such as loading kernels and capturing a graph, is in it."""
    bench = Bench(run, name)
    own, case = RomeFast(), bench.cases[""]
    with bench.as_(precision):
        first = own.edit(case).seconds["total"]
        later = [own.edit(case).seconds["total"] for _ in range(run.pick(6, 3))]
    # The second one may still do what the next ones need not.
    return {"seconds": figure(first), **spread(later[1:], "s"), "backend": bench.backend}
