"""Times the ops against what torch offers for the same work.

Every row is checked against a float64 reference before it is timed. `peer` rows are the torch
calls a user would write; `torch` is this library's own fallback. Save the committed results with
    pytest benchmarks/bench_ops.py --benchmark-only --save-result ops-cpu
"""

import pytest
import torch

from rome_fast.ops import (
    rank_one_solve_apply_,
    rank_one_update_,
    resolve_backend,
    second_moment_update_,
)
from rome_fast.testing import assert_close

MOMENT_SIZES = [(2048, 1024), (2048, 3072)]  # n rows, d columns
SOLVE_SIZES = [1024, 3072]
WEIGHT_SHAPE = (768, 3072)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def timed(benchmark, function, *, rounds, gflop=None, gigabytes=None, **info):
    """Time function and store GFLOP/s or GB/s of the best round beside what ran."""
    benchmark.pedantic(function, rounds=rounds, iterations=1, warmup_rounds=2)
    best = benchmark.stats.stats.min
    benchmark.extra_info.update(info)
    if gflop is not None:
        benchmark.extra_info["gflop_per_s"] = round(gflop / best, 1)
    if gigabytes is not None:
        benchmark.extra_info["gb_per_s"] = round(gigabytes / best, 1)


@pytest.mark.parametrize("impl", ["native", "peer_addmm"])
@pytest.mark.parametrize(
    ("key_dtype", "sum_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize(("n", "d"), MOMENT_SIZES)
def test_second_moment(benchmark, n, d, key_dtype, sum_dtype, impl):
    keys = random(n, d, dtype=key_dtype)
    moment_sum = torch.zeros(d, d, dtype=sum_dtype)

    def native():
        second_moment_update_(moment_sum, keys, backend="native")

    def peer_addmm():
        rows = keys.to(sum_dtype)
        moment_sum.addmm_(rows.T, rows)

    function = {"native": native, "peer_addmm": peer_addmm}[impl]
    function()
    assert_close(moment_sum.tril(), (keys.double().T @ keys.double()).tril(), sum_dtype)
    # The same work for both: n * d * (d + 1) flops in the lower triangle.
    gflop = n * d * (d + 1) / 1e9
    timed(benchmark, function, rounds=9, gflop=gflop, impl=impl, n=n, d=d)


@pytest.mark.parametrize("impl", ["native", "torch", "peer_cholesky_solve", "peer_precision"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", SOLVE_SIZES)
def test_solve(benchmark, d, dtype, impl):
    samples = random(2 * d, d, dtype=torch.float64)
    moment = samples.T @ samples / len(samples)
    exact_factor = torch.linalg.cholesky(moment)
    key = random(d, dtype=torch.float64, seed=1)
    reference = torch.cholesky_solve(key[:, None], exact_factor)[:, 0]
    factor, column = exact_factor.to(dtype), key.to(dtype)[:, None]
    precision = torch.cholesky_inverse(exact_factor).to(dtype)
    row = torch.zeros(1, d, dtype=torch.float64)  # a one-row weight: the solve alone

    def op():
        options = dict(weight_layout="out_in", min_denominator=0.0, backend=impl)
        return rank_one_solve_apply_(row, factor, key, key, torch.ones(1), **options)[0]

    function = {
        "native": op,
        "torch": op,
        "peer_cholesky_solve": lambda: torch.cholesky_solve(column, factor)[:, 0],
        "peer_precision": lambda: precision @ column[:, 0],
    }[impl]
    solution = function().double()
    assert_close(solution / solution.norm(), reference / reference.norm(), dtype)
    # Both triangles read once, or the whole precision matrix read once: the same bytes.
    gigabytes = d * d * dtype.itemsize / 1e9
    timed(benchmark, function, rounds=15, gigabytes=gigabytes, impl=impl, d=d)


@pytest.mark.parametrize("impl", ["native", "torch", "peer_addr"])
@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rank_one_update(benchmark, dtype, layout, impl):
    d_value, d_key = WEIGHT_SHAPE
    shape = (d_value, d_key) if layout == "out_in" else (d_key, d_value)
    weight = random(*shape, dtype=dtype)
    u, v = random(d_key, seed=1), random(d_value, seed=2)
    rows, cols = (v, u) if layout == "out_in" else (u, v)
    expected = weight.double() + torch.outer(rows.double(), cols.double())

    def op():
        rank_one_update_(weight, u, v, weight_layout=layout, backend=impl)

    def peer_addr():
        weight.addr_(rows.to(dtype), cols.to(dtype))

    function = peer_addr if impl == "peer_addr" else op
    function()
    assert_close(weight, expected)
    gigabytes = 2 * weight.nbytes / 1e9
    timed(benchmark, function, rounds=30, gigabytes=gigabytes, impl=impl, layout=layout)


def test_native_backend_is_what_auto_means():
    """A benchmark run without the library would time the fallback under a false name."""
    assert resolve_backend("auto") == "native"
