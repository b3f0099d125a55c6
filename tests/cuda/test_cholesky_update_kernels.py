"""cholesky_update_ of the CUDA library against refactorised float64, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from ops.test_cholesky_update import randn, sample_moment

from rome_fast.testing import CanaryBuffer, assert_close, with_strides

DTYPES = [torch.float64, torch.float32]
STRIDES = ["row_major", "column_major", "strided"]


@pytest.fixture(params=["", "naive"], ids=["fast", "naive"], autouse=True)
def kernel(request, monkeypatch):
    monkeypatch.setenv("ROME_FAST_CUDA_KERNEL", request.param)


# On both sides of a block's 32 rows and 128 columns, a tile of the solve.
@pytest.mark.covering("dtype,kernel", "strides", "d", "emulated")
@pytest.mark.parametrize("d", [1, 31, 65, 128, 257])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strides", STRIDES)
def test_update_and_downdate_match_a_refactorisation(emulated, dtype, strides, d):
    moment, x = sample_moment(d), randn(d, seed=2)
    start = torch.linalg.cholesky(moment)
    larger = torch.linalg.cholesky(moment + torch.outer(x, x))
    factor = with_strides(start.to(dtype, copy=True), strides)
    assert emulated.cholesky_update_(factor, x.to(dtype), False).item() is True
    assert_close(factor.tril(), larger, dtype)
    factor = with_strides(larger.to(dtype, copy=True), strides)
    assert emulated.cholesky_update_(factor, x.to(dtype), True).item() is True
    error = (factor.double().tril() - start).norm() / moment.norm()
    assert error < (1e-10 if dtype == torch.float64 else 1e-3)


@pytest.mark.exhaustive
@pytest.mark.covering("strides", "emulated", kernel=[""])
@pytest.mark.parametrize("strides", ["row_major", "column_major"])
def test_more_columns_than_one_round_of_the_scan(emulated, strides):
    """And an update that is taken out again, past 1024 columns."""
    d = 1024 + 40
    factor = randn(d, d).tril_().mul_(0.2 / d**0.5).fill_diagonal_(1.0)
    x = randn(d, seed=1) / d**0.5
    larger = torch.linalg.cholesky(factor @ factor.T + torch.outer(x, x))
    target = with_strides(factor.clone(), strides)
    assert emulated.cholesky_update_(target, x, False)
    assert_close(target.tril(), larger, torch.float64)
    assert emulated.cholesky_update_(target, x, True)
    assert_close(target.tril(), factor, torch.float64)


@pytest.mark.covering("dtype,kernel", "transposed", "emulated")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_the_lower_triangle_is_written(emulated, dtype, transposed):
    d = 70
    moment, x = sample_moment(d), randn(d, seed=2).to(dtype)
    factor = torch.linalg.cholesky(moment).to(dtype)
    factor[torch.ones(d, d, dtype=torch.bool).triu(1)] = torch.nan
    buffer = CanaryBuffer(factor, transposed)
    assert emulated.cholesky_update_(buffer.view, x, False)
    buffer.assert_intact()
    assert buffer.view.triu(1)[0, 1:].isnan().all()
    expected = torch.linalg.cholesky(moment + torch.outer(x, x).double())
    assert_close(buffer.view.tril().nan_to_num(), expected, dtype)


@pytest.mark.covering
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("what", ["too large", "nan in x", "inf in x", "nan in L", "zero in L"])
def test_what_is_refused_leaves_every_bit(emulated, what, strides):
    d = 67
    factor = with_strides(torch.linalg.cholesky(sample_moment(d)), strides)
    x = factor.tril() @ torch.nn.functional.normalize(randn(d, seed=3), dim=0)
    downdate = what == "too large"
    if what.endswith("x"):
        x[5] = float(what.split()[0])
    if what.endswith("L"):
        factor[40, 40] = {"nan": torch.nan, "zero": 0.0}[what.split()[0]]
    before = factor.clone()
    x = x * (1.001 if downdate else 1)
    assert emulated.cholesky_update_(factor, x, downdate).item() is False
    torch.testing.assert_close(factor, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.covering
def test_an_empty_factor(emulated):
    assert emulated.cholesky_update_(torch.zeros(0, 0), torch.zeros(0), False).item() is True
