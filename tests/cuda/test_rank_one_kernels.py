"""rank_one_update_ and rank_one_solve_apply_ of the CUDA library: their bits, and float64."""

from __future__ import annotations

import math

import pytest
import torch
from ops.test_rank_one import WEIGHT_DTYPES, compute_dtype, reference, sample_problem

from rome_fast.ops._default import rank_one_solve_apply_default, rank_one_update_default
from rome_fast.testing import CANARY, CanaryBuffer, assert_close, with_strides

STRIDES = ["row_major", "column_major", "strided"]
HALVES = [torch.bfloat16, torch.float16]
# On both sides of half a block of the solve, of a whole one and of two.
SIZES = [1, 63, 65, 128, 130, 257]


@pytest.fixture(params=["", "naive"], ids=["fast", "naive"])
def kernel(request, monkeypatch):
    monkeypatch.setenv("ROME_FAST_CUDA_KERNEL", request.param)


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def refuse_upper(matrix):
    """The matrix with NaN above its diagonal, where nothing may be read."""
    matrix[torch.ones_like(matrix, dtype=torch.bool).triu(1)] = torch.nan
    return matrix


@pytest.mark.covering("dtype,kernel", "strides,kernel", "shape", "emulated")
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=str)
@pytest.mark.parametrize("strides", STRIDES)
# Whole vectors of 16 bytes, lines that are none, a tail, and one of either.
@pytest.mark.parametrize("shape", [(40, 1040), (37, 53), (21, 2052), (1, 70), (70, 1)])
def test_update_writes_the_bits_of_the_default(emulated, dtype, strides, shape):
    weight = randn(*shape).to(dtype)
    u, v = (randn(n, seed=n).to(compute_dtype(dtype)) for n in shape[::-1])
    target = with_strides(weight.clone(), strides)
    emulated.rank_one_update_(target, u, v)
    rank_one_update_default(weight, u, v)
    assert torch.equal(target, weight)


@pytest.mark.covering
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_update_honours_strides_and_takes_any_vector(emulated, dtype, transposed):
    weight = randn(37, 53).to(dtype)
    u, v = randn(106, seed=1)[::2].bfloat16(), randn(37, seed=2)
    target = CanaryBuffer(weight, transposed)
    emulated.rank_one_update_(target.view, u, v)
    rank_one_update_default(weight, u, v)
    target.assert_intact()
    assert torch.equal(target.view, weight)


@pytest.mark.covering
@pytest.mark.parametrize("start", [0, 1, 4, 8])
def test_rows_beside_others_are_left_alone(emulated, start):
    """A slice of columns: unit stride, whatever its alignment, and neighbours on both sides."""
    whole = torch.full((9, 96), CANARY)
    whole[:, start : start + 60] = randn(9, 60).float()
    expected, u, v = whole.clone(), randn(60, seed=1).float(), randn(9, seed=2).float()
    emulated.rank_one_update_(whole[:, start : start + 60], u, v)
    rank_one_update_default(expected[:, start : start + 60], u, v)
    assert torch.equal(whole, expected)


@pytest.mark.covering("half,kernel", "strides", "rounded_strides", "shape", "emulated")
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("rounded_strides", STRIDES)
@pytest.mark.parametrize("shape", [(20, 1032), (37, 53)])
def test_the_rounding_is_that_of_the_sum(emulated, shape, rounded_strides, strides, half):
    weight = 3e4 * randn(*shape).float()  # float16 overflows
    expected, u, v = weight.clone(), randn(shape[1], seed=1).float(), randn(shape[0], seed=2)
    v = 1e4 * v.float()
    weight = with_strides(weight, strides)
    target = CanaryBuffer(torch.zeros(shape, dtype=half), rounded_strides == "column_major")
    rounded = target.view
    if rounded_strides == "row_major":
        rounded = torch.zeros(shape, dtype=half)
    emulated.rank_one_update_(weight, u, v, rounded)
    rank_one_update_default(expected, u, v)
    assert torch.equal(weight, expected)
    assert torch.equal(rounded, expected.to(half))
    target.assert_intact()


@pytest.mark.covering("metric,kernel", "factor_dtype,kernel", "strides", "d_key", "emulated")
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("d_key", SIZES)
@pytest.mark.parametrize("factor_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("metric", ["factor", "inverse"])
def test_solve_apply_matches_a_general_solver(emulated, metric, strides, factor_dtype, d_key):
    moment, factor, key, denominator_key, residual = sample_problem(11, d_key)
    weight = randn(11, d_key)
    expected = reference(weight, "out_in", moment, key, denominator_key, residual)
    matrix = factor if metric == "factor" else torch.linalg.inv(moment)
    matrix = refuse_upper(with_strides(matrix.to(factor_dtype), strides))
    before = matrix.clone()
    given = {"factor": None} | {metric: matrix}
    u, v, denominator, norm, applied = emulated.rank_one_solve_apply_(
        weight, given["factor"], key, denominator_key, residual, 0.1, math.inf,
        given.get("inverse"),
    )  # fmt: skip
    precision = torch.float64 if factor_dtype == torch.float64 else torch.float32
    if metric == "inverse":  # rounded itself, which cond(C), about 1e3 here, magnifies
        precision = {torch.float64: torch.float32, torch.float32: torch.float16}[factor_dtype]
    assert applied.item() is True
    assert_close(u, expected[0], precision)
    assert_close(v, expected[1], precision)
    assert_close(denominator, expected[2], precision)
    assert_close(norm, expected[1].norm(), precision)
    assert_close(weight, expected[3], precision)
    assert torch.equal(matrix.nan_to_num(7.5), before.nan_to_num(7.5))


@pytest.mark.exhaustive
@pytest.mark.covering
@pytest.mark.parametrize("metric", ["factor", "inverse"])
@pytest.mark.parametrize("strides", ["row_major", "column_major"])
def test_a_large_solve_goes_over_many_blocks(emulated, strides, metric):
    """More block rows than the inverses of a diagonal tile are made ahead."""
    d = 128 * 10 + 7
    factor = randn(d, d).tril_().mul_(0.2 / d**0.5).fill_diagonal_(1.0)
    matrix = factor if metric == "factor" else factor + factor.tril(-1).T
    key = randn(d, seed=1)
    w = matrix @ key
    if metric == "factor":
        w = torch.cholesky_solve(key[:, None], factor)[:, 0]
    given = {"factor": None} | {metric: refuse_upper(with_strides(matrix.clone(), strides))}
    weight = torch.zeros(1, d, dtype=torch.float64)
    arguments = given["factor"], key, w, torch.ones(1), 0.0, math.inf, given.get("inverse")
    u, *_, applied = emulated.rank_one_solve_apply_(weight, *arguments)
    assert applied
    assert_close(u, w / w.norm())
    emulated.seed(7)  # another order, the same bits
    again, *_ = emulated.rank_one_solve_apply_(weight, *arguments)
    assert torch.equal(again, u)


@pytest.mark.covering("factor_dtype", "strides", "emulated")
@pytest.mark.parametrize("factor_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("strides", ["row_major", "column_major"])
def test_an_ill_conditioned_factor_is_solved_in_double(emulated, strides, factor_dtype):
    """cond(C) = 1e6; the inverses of diagonal tiles lose nothing beside the oracle."""
    d = 200
    basis = torch.linalg.qr(randn(d, d)).Q
    moment = basis @ torch.diag(torch.logspace(0, -6, d, dtype=torch.float64)) @ basis.T
    factor = torch.linalg.cholesky(moment).to(factor_dtype)
    key = randn(d, seed=1)
    w = torch.cholesky_solve(key[:, None], factor.double())[:, 0]
    weight = torch.zeros(1, d, dtype=torch.float64)
    u, *_, applied = emulated.rank_one_solve_apply_(
        weight, with_strides(factor, strides), key, w, torch.ones(1), 0.0, math.inf
    )
    assert applied
    assert (u - w / w.norm()).norm() < 1e-9


@pytest.mark.covering
@pytest.mark.parametrize("shape", [(1, 20_000), (5_000, 1)])
def test_vectors_longer_than_what_is_on_its_way_at_once(emulated, shape):
    key, denominator_key = randn(shape[1], seed=1), randn(shape[1], seed=2)
    arguments = None, key, key + 0.1 * denominator_key, randn(shape[0], seed=3), 0.1, math.inf
    found = emulated.rank_one_solve_apply_(torch.zeros(shape), *arguments)
    wanted = rank_one_solve_apply_default(torch.zeros(shape), *arguments)
    assert found[4]
    for mine, other in zip(found, wanted, strict=True):
        assert_close(mine, other, torch.float32)


@pytest.mark.covering
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=str)
@pytest.mark.parametrize("strides", STRIDES)
def test_solve_apply_writes_what_it_returns(emulated, dtype, strides):
    weight = with_strides(randn(65, 70).to(dtype), strides)
    replayed = weight.clone()
    _, factor, key, denominator_key, residual = sample_problem(65, 70)
    u, v, denominator, norm, applied = emulated.rank_one_solve_apply_(
        weight, factor, key, denominator_key, residual, 0.1, math.inf
    )
    assert applied
    assert u.dtype == v.dtype == compute_dtype(dtype)
    assert denominator.dtype == norm.dtype == torch.float64
    rank_one_update_default(replayed, u, v)
    assert torch.equal(weight, replayed)


@pytest.mark.covering
@pytest.mark.parametrize("vectors", WEIGHT_DTYPES, ids=str)
def test_vectors_of_any_dtype_and_stride(emulated, vectors):
    _, factor, key, denominator_key, residual = sample_problem(9, 70)
    spread = [x.to(vectors).repeat_interleave(3)[1::3] for x in (key, denominator_key, residual)]
    weight = randn(9, 70)
    expected = weight.clone()
    found = emulated.rank_one_solve_apply_(weight, factor, *spread, 0.1, math.inf)
    wanted = rank_one_solve_apply_default(expected, factor, *spread, 0.1, math.inf)
    for mine, other in zip(found, wanted, strict=True):
        assert_close(mine, other, torch.float64)
    assert_close(weight, expected)


@pytest.mark.covering
@pytest.mark.parametrize("transposed", [False, True])
def test_solve_apply_honours_strides_and_rounds(emulated, transposed):
    weight = randn(21, 40).float()
    _, factor, key, denominator_key, residual = sample_problem(21, 40)
    target = CanaryBuffer(weight, transposed)
    rounded = CanaryBuffer(torch.zeros(21, 40).bfloat16(), transposed)
    arguments = factor, key, denominator_key, residual, 0.1, math.inf
    emulated.rank_one_solve_apply_(target.view, *arguments, None, rounded.view)
    emulated.rank_one_solve_apply_(weight, *arguments)
    target.assert_intact()
    rounded.assert_intact()
    assert torch.equal(target.view, weight)
    assert torch.equal(rounded.view, weight.bfloat16())


def refused_cases():
    nan, inf = math.nan, math.inf
    ones = torch.ones(4)
    return {
        "small denominator": dict(denominator_key=ones * 0.05),
        "zero denominator": dict(denominator_key=torch.tensor([1.0, -1, 0, 0]), least=0.0),
        "nan key": dict(key=torch.tensor([nan, 1, 1, 1])),
        "zero key": dict(key=torch.zeros(4)),
        "infinite residual": dict(residual=torch.tensor([1.0, inf, 1.0])),
        "nan denominator_key": dict(denominator_key=torch.tensor([1.0, nan, 1.0, 1.0])),
        "singular factor": dict(factor=torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0]))),
        "nan factor": dict(factor=torch.eye(4).index_fill(0, torch.tensor([2]), nan)),
        "nan inverse": dict(inverse=torch.full((4, 4), nan)),
        "large update": dict(most=0.8),  # it is sqrt(3) / 2
        "overflowing v": dict(residual=torch.full((3,), 3e38), denominator_key=ones * 0.2),
    }


@pytest.mark.covering
@pytest.mark.parametrize("case", refused_cases())
def test_refused_update_leaves_every_bit(emulated, case):
    x = dict(
        factor=None, key=torch.ones(4), denominator_key=torch.ones(4), residual=torch.ones(3),
        least=0.1, most=math.inf, inverse=None, rounded=torch.full((3, 4), 5.0).half(),
    )  # fmt: skip
    weight = randn(3, 4).float()
    before = weight.clone()
    assert emulated.rank_one_solve_apply_(weight.clone(), *(x | {"rounded": None}).values())[4]
    applied = emulated.rank_one_solve_apply_(weight, *(x | refused_cases()[case]).values())[4]
    assert applied.dtype == torch.bool
    assert applied.item() is False
    assert torch.equal(weight, before)
    assert (x["rounded"] == 5).all()


@pytest.mark.covering
@pytest.mark.parametrize(("d_value", "d_key", "applied"), [(0, 5, True), (5, 0, False)])
@pytest.mark.parametrize("metric", [None, "factor", "inverse"])
def test_empty_weights(emulated, d_value, d_key, applied, metric):
    weight, u, v = torch.zeros(d_value, d_key), torch.ones(d_key), torch.ones(d_value)
    emulated.rank_one_update_(weight, u, v)
    given = {metric: torch.eye(d_key)}
    arguments = given.get("factor"), u, u, v, 0.1, math.inf, given.get("inverse")
    outputs = emulated.rank_one_solve_apply_(weight, *arguments)
    assert outputs[0].shape == (d_key,)
    assert outputs[1].shape == (d_value,)
    assert outputs[4].item() is applied
