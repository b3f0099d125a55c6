"""What the benchmark files share: reproducible inputs, and timing beside a rival.

A machine changes speed from one minute to the next. What is compared is therefore run in turns,
and the ratio of neighbouring runs is what a result is quoted by.
"""

import statistics
import time

import torch


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def timed(benchmark, function, *, rounds, beside=None, gflop=None, gigabytes=None, **info):
    """Time function; store GFLOP/s or GB/s of the best round beside what ran.

    beside: a function that runs before every round, timed apart. `times_beside` is then the
    median over the rounds of (time of function) / (time of beside), with its quartiles.
    """
    beside_seconds = []

    def run_beside():
        started = time.perf_counter()
        beside()
        beside_seconds.append(time.perf_counter() - started)

    setup = None if beside is None else run_beside
    benchmark.pedantic(function, setup=setup, rounds=rounds, iterations=1, warmup_rounds=2)
    seconds = benchmark.stats.stats.data
    benchmark.extra_info.update(info)
    if beside is not None:
        ratios = [a / b for a, b in zip(seconds, beside_seconds[-rounds:], strict=True)]
        low, middle, high = (round(q, 3) for q in statistics.quantiles(ratios, n=4))
        benchmark.extra_info.update(times_beside=middle, times_beside_quartiles=[low, high])
    if gflop is not None:
        benchmark.extra_info["gflop_per_s"] = round(gflop / min(seconds), 1)
    if gigabytes is not None:
        benchmark.extra_info["gb_per_s"] = round(gigabytes / min(seconds), 1)
