"""What the benchmark files share: reproducible inputs, and timing beside a rival.

A machine changes speed from one minute to the next. What is compared is therefore run in turns,
and the ratio of neighbouring runs is what a result is quoted by.
"""

import statistics
import time

import torch

from rome_fast.bench.floor import gemm_rate
from rome_fast.info import info as installed

WHY_NOT_NATIVE = installed()["native_library"]["why_not"]


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def copy_gb_per_s(gigabytes):
    """GB/s of a copy that reads and writes as many bytes in all, the best of several."""
    source = torch.zeros(max(1, round(gigabytes * 1e9 / 2)), dtype=torch.uint8)
    target, seconds = torch.empty_like(source), []
    for _ in range(21):
        started = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / 1e9 / min(seconds[1:])


def gemm_gflop_per_s(products):
    """GFLOP/s of torch's fastest matrix product of some (n_rows, d_in, d_out, dtype)."""
    return max(gemm_rate(*product, repeats=5) for product in products) / 1e9


def timed(
    benchmark,
    function,
    *,
    rounds,
    beside=None,
    clock=time.perf_counter,
    gflop=None,
    gemm=None,
    gigabytes=None,
    **info,
):
    """Time function; store GFLOP/s or GB/s of the best round beside what ran.

    `floor_fraction` is that over what the machine reaches in the same minute: in a product of
    one of the shapes and dtypes `gemm`, or in a copy of as many bytes. A function that only reads,
    or whose bytes stay in a cache, may exceed 1.

    beside: a function that runs before every round, timed apart. `times_beside` is then the
    median over the rounds of (time of function) / (time of beside), with its quartiles.
    clock: beside's; function has that of `pytest.mark.benchmark(timer=...)`.
    """
    beside_seconds = []

    def run_beside():
        started = clock()
        beside()
        beside_seconds.append(clock() - started)

    setup = None if beside is None else run_beside
    benchmark.pedantic(function, setup=setup, rounds=rounds, iterations=1, warmup_rounds=2)
    seconds = benchmark.stats.stats.data
    benchmark.extra_info.update(info)
    if beside is not None:
        ratios = [a / b for a, b in zip(seconds, beside_seconds[-rounds:], strict=True)]
        low, middle, high = (round(q, 3) for q in statistics.quantiles(ratios, n=4))
        benchmark.extra_info.update(times_beside=middle, times_beside_quartiles=[low, high])
    if gflop is not None:
        book(benchmark, "gflop_per_s", gflop / min(seconds), gemm_gflop_per_s(gemm))
    if gigabytes is not None:
        book(benchmark, "gb_per_s", gigabytes / min(seconds), copy_gb_per_s(gigabytes))


def book(benchmark, unit, rate, best):
    """A rate, the machine's best one, and the first as a share of the second."""
    benchmark.extra_info[unit] = round(rate, 1)
    benchmark.extra_info[f"machine_{unit}"] = round(best, 1)
    benchmark.extra_info["floor_fraction"] = round(rate / best, 3)
