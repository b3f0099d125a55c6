"""Times the ops of an edit against what torch offers for the same work, and against its bytes.

Every row is checked against a float64 reference before it is timed. `peer` rows are the torch
calls a user would write; `torch` is this library's own fallback. The ops behind C are in
bench_second_moment.py. Save the committed results with
    pytest benchmarks/ops/bench_ops.py --benchmark-only --save-result ops-cpu
"""

import pytest
import torch

from benchmarks.support.timing import WHY_NOT_NATIVE, random, timed
from rome_fast.model.intercept import linear_in_slices
from rome_fast.ops import rank_one_solve_apply_, rank_one_update_
from rome_fast.testing import assert_close

SOLVE_SIZES = [1024, 3072]
WEIGHT_SHAPE = (768, 3072)
HEAD_SHAPE = (50257, 768)


@pytest.fixture(autouse=True)
def skip_native_where_it_cannot_run(request):
    """Timed as "native", the fallback would stand under a false name."""
    if request.node.callspec.params["impl"] == "native" and WHY_NOT_NATIVE:
        pytest.skip(f"native: {WHY_NOT_NATIVE}")


def factored_moment(d):
    """C and its exact lower factor, float64."""
    samples = random(2 * d, d, dtype=torch.float64)
    moment = samples.T @ samples / len(samples)
    return moment, torch.linalg.cholesky(moment)


@pytest.mark.parametrize("impl", ["native", "torch", "peer_cholesky_solve", "peer_precision"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", SOLVE_SIZES)
def test_solve(benchmark, d, dtype, impl):
    _, exact_factor = factored_moment(d)
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


@pytest.mark.parametrize("impl", ["native", "torch", "peer_solve_addr"])
@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_solve_apply(benchmark, layout, impl):
    """The whole update of an edit: solve with C, scale by what the key says of it, write."""
    d_value, d_key = WEIGHT_SHAPE
    weight = random(*(WEIGHT_SHAPE if layout == "out_in" else WEIGHT_SHAPE[::-1]))
    moment, factor = factored_moment(d_key)
    key, residual = random(d_key, seed=1), random(d_value, seed=2)
    solved = torch.linalg.solve(moment, key.double())
    change = torch.outer(residual.double() / (key.double() @ solved), solved)
    expected = weight.double() + (change if layout == "out_in" else change.T)

    def op():
        options = dict(weight_layout=layout, min_denominator=0.0, backend=impl)
        rank_one_solve_apply_(weight, factor, key, key, residual, **options)

    def peer_solve_addr():
        u = torch.cholesky_solve(key.to(factor)[:, None], factor)[:, 0].float()
        v = residual / (key @ u)
        weight.addr_(*((v, u) if layout == "out_in" else (u, v)))

    function = peer_solve_addr if impl == "peer_solve_addr" else op
    function()
    assert_close(weight, expected)
    # The factor's triangle is read twice, the weight is read and written.
    gigabytes = (factor.nbytes + 2 * weight.nbytes) / 1e9
    timed(benchmark, function, rounds=15, gigabytes=gigabytes, impl=impl, layout=layout)


@pytest.mark.parametrize("impl", ["slices", "peer_linear"])
def test_output_head(benchmark, impl):
    """The logits of the 22 positions that a step of the search reads, by GPT-2's head."""
    weight, hidden = random(*HEAD_SHAPE), random(22, HEAD_SHAPE[1], seed=1)
    functions = {
        "slices": lambda: linear_in_slices(hidden, weight, None),
        "peer_linear": lambda: torch.nn.functional.linear(hidden, weight),
    }
    expected = hidden.double() @ weight.double().T
    for function in functions.values():
        assert_close(function(), expected)
    beside = functions["peer_linear"] if impl == "slices" else None
    work = dict(
        gflop=2 * 22 * weight.numel() / 1e9, gemm=[(22, HEAD_SHAPE[1], 1024, torch.float32)]
    )
    timed(benchmark, functions[impl], rounds=30, beside=beside, **work, impl=impl)
