"""SecondMoment against float64 linear algebra: sums, ridges, solves, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from rome_fast.errors import (
    InvalidArgumentError,
    NonFiniteError,
    SecondMomentError,
    SecondMomentWarning,
)
from rome_fast.moment.second_moment import SecondMoment


@pytest.fixture
def keys():
    generator = torch.Generator().manual_seed(7)
    mixing = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    return torch.randn(200, 24, generator=generator, dtype=torch.float64) @ mixing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_add_in_parts_with_mask_equals_the_mean(keys, dtype):
    moment = SecondMoment(24, dtype=dtype)
    mask = torch.arange(200).reshape(2, 100) % 3 > 0
    moment.add(keys.reshape(2, 100, 24).to(dtype), mask)
    moment.add(keys[:50].to(dtype))
    kept = torch.cat([keys[mask.flatten()], keys[:50]])
    expected = kept.T @ kept / len(kept)
    assert moment.count == len(kept)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(moment.moment().double(), expected, rtol=tolerance, atol=tolerance)


def test_merge_equals_adding_all(keys):
    both, first, second = (SecondMoment(24) for _ in range(3))
    both.add(keys)
    first.add(keys[:80])
    second.add(keys[80:])
    first.merge(second)
    torch.testing.assert_close(first.moment(), both.moment())
    assert first.count == both.count == 200
    with pytest.raises(SecondMomentError, match="d_key 24 and 3"):
        first.merge(SecondMoment(3))


def test_merge_keeps_what_holds_for_both_and_refuses_other_models(keys):
    first, second = SecondMoment(24, source="one"), SecondMoment(24, source="two")
    first.add(keys[:80])
    second.add(keys[80:])
    first.info = {
        "module": "m", "weights": "abc", "tokens": 80, "sample_size": 3, "texts": "one"
    }  # fmt: skip
    second.info = {
        "module": "m", "weights": "xyz", "tokens": 120, "sample_size": 4, "texts": "two"
    }  # fmt: skip
    before = first.moment()
    with pytest.raises(SecondMomentError, match=r"the weights below .* differs: abc and xyz"):
        first.merge(second)
    assert torch.equal(first.moment(), before) and first.count == 80
    second.info["weights"] = "abc"
    first.merge(second)
    assert first.info == {"module": "m", "weights": "abc", "tokens": 200, "sample_size": 7}
    assert first.source == "one + two"


def test_solve_against_a_dense_inverse(keys):
    moment = SecondMoment(24)
    moment.add(keys)
    inverse = torch.linalg.inv(keys.T @ keys / 200)
    torch.testing.assert_close(moment.solve(keys[3]), inverse @ keys[3], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(moment.solve(keys[:5]), keys[:5] @ inverse, rtol=1e-7, atol=1e-9)
    assert moment.jitter == 0.0
    # New keys must reach the factor.
    moment.add(100 * keys[:1])
    assert not torch.allclose(moment.solve(keys[3]), inverse @ keys[3])


def test_damping_is_a_ridge_on_the_mean_eigenvalue(keys):
    plain, damped = SecondMoment(24), SecondMoment(24, damping=0.5)
    for moment in (plain, damped):
        moment.add(keys)
    c = plain.moment()
    ridge = c + 0.5 * c.trace() / 24 * torch.eye(24)
    torch.testing.assert_close(damped.solve(keys[0]), torch.linalg.solve(ridge, keys[0]))


def test_automatic_ridge_is_the_shrinkage_of_chen_et_al(keys):
    """Against their eq. 23, written out; it falls with the count and keeps a low rank solvable."""
    few, many = SecondMoment(24, damping="auto"), SecondMoment(24, damping="auto")
    few.add(keys[:10])
    many.add(keys)
    for moment, n in ((few, 10), (many, 200)):
        c, p = moment.moment(), 24
        tr2, sq = c.trace() ** 2, (c @ c).trace()
        rho = ((1 - 2 / p) * sq + tr2) / ((n + 1 - 2 / p) * (sq - tr2 / p))
        rho = min(float(rho), 0.5)
        assert moment.ridge() == pytest.approx(rho / (1 - rho), rel=1e-12)
        ridge = c + moment.ridge() * c.trace() / p * torch.eye(p)
        torch.testing.assert_close(moment.solve(keys[0]), torch.linalg.solve(ridge, keys[0]))
    assert many.ridge() < few.ridge()
    few.add(keys[10:])
    assert few.ridge() == pytest.approx(many.ridge())


def test_too_few_keys_are_refused_with_the_rank(keys):
    moment = SecondMoment(24)
    moment.add(keys[:10])
    moment.add(keys[:4])
    with pytest.raises(SecondMomentError, match=r"rank 10 of 24 from 14 keys: collect 120 keys"):
        moment.solve(keys[0])


def test_misuse_is_named_and_adds_nothing(keys):
    moment = SecondMoment(24)
    moment.add(keys)
    before = moment.moment()
    broken = keys.clone()
    broken[3, 5] = float("nan")
    with pytest.raises(NonFiniteError, match="1 keys hold NaN"):
        moment.add(broken)
    with pytest.raises(InvalidArgumentError, match=r"shape \[..., 24\], got \[200, 23\]"):
        moment.add(keys[:, 1:])
    with pytest.raises(InvalidArgumentError, match="mask must have 200 elements, got 3"):
        moment.add(keys, torch.ones(3))
    with pytest.raises(InvalidArgumentError, match=r"shape \[..., 24\], got \[9\]"):
        moment.solve(keys[0, :9])
    with pytest.raises(SecondMomentError, match="with itself"):
        moment.merge(moment)
    assert torch.equal(moment.moment(), before) and moment.count == 200
    moment.add(broken, torch.arange(200) != 3)  # padding may hold anything
    assert moment.count == 399
    for d_key in (0, -1, 1.5):
        with pytest.raises(InvalidArgumentError, match="d_key must be a whole number"):
            SecondMoment(d_key)


def test_damping_can_be_set_anew(keys):
    moment = SecondMoment(24)
    moment.add(keys)
    plain = moment.solve(keys[0])
    moment.damping = 0.5
    c = moment.moment()
    ridge = c + 0.5 * c.trace() / 24 * torch.eye(24)
    torch.testing.assert_close(moment.solve(keys[0]), torch.linalg.solve(ridge, keys[0]))
    moment.damping = 0.0
    torch.testing.assert_close(moment.solve(keys[0]), plain)


def test_made_in_inference_mode_it_can_be_used_outside(keys):
    with torch.inference_mode():
        moment = SecondMoment(24)
        moment.add(keys)
    other = SecondMoment(24)
    other.add(keys[:5])
    moment.merge(other)
    assert moment.count == 205


@pytest.mark.exhaustive
def test_a_factor_takes_no_more_memory_than_it_says():
    """16 d^2 bytes beside the sum, and in float32 half of that, in a process with a limit."""
    script = """
import resource, sys, torch
from rome_fast import SecondMoment
torch.set_num_threads(1)
d, bytes_an_entry = 3000, float(sys.argv[1])
moment = SecondMoment(d, dtype=torch.float32, damping="auto")
moment.add(torch.randn(100, 40) @ torch.randn(40, d))
warm = SecondMoment(300, damping="auto"); warm.add(torch.randn(400, 300)); warm.factor()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
# What the libraries take for themselves varies by some MiB from run to run.
limit = used + int(bytes_an_entry * d * d) + (48 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(moment.factor().dtype)
"""

    def factored(bytes_an_entry):
        command = [sys.executable, "-W", "ignore", "-c", script, str(bytes_an_entry)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert factored(16.5) == "torch.float64"
    assert factored(8.5) == "torch.float32"


def test_dead_dimension_gets_a_jitter_and_a_warning(keys):
    """Keys of a ReLU model: some dimensions are always zero, however many keys there are."""
    keys[:, 5] = 0
    moment = SecondMoment(24, source="a test")
    moment.add(keys)
    with pytest.warns(SecondMomentWarning, match=r"\(a test\) is singular .* 1e-08 of its mean"):
        assert torch.isfinite(moment.solve(keys[0])).all()
    assert moment.jitter == 1e-8 and str(moment) == "a test, jitter 1e-08 added"


def test_factor_falls_back_to_float32_where_memory_is_short(keys, monkeypatch):
    cholesky = torch.linalg.cholesky_ex

    def short_of_memory(matrix):
        if matrix.dtype == torch.float64:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] not enough memory: you tried ...")
        return cholesky(matrix)

    moment = SecondMoment(24)
    moment.add(keys)
    exact = moment.solve(keys[0])
    moment._factor = None
    monkeypatch.setattr(torch.linalg, "cholesky_ex", short_of_memory)
    with pytest.warns(SecondMomentWarning, match="factored in float32"):
        assert moment.factor().dtype == torch.float32
    torch.testing.assert_close(moment.solve(keys[0]), exact, rtol=1e-3, atol=1e-6)
    assert moment.whiten(keys[:2]).dtype == torch.float64


def test_compensated_sum_keeps_what_float32_loses(keys):
    exact, plain = SecondMoment(24), SecondMoment(24, dtype=torch.float32)
    compensated = SecondMoment(24, dtype=torch.float32, compensated=True)
    chunk = (keys[:4] + 10).float()
    for _ in range(4000):
        for moment in (exact, plain, compensated):
            moment.add(chunk.double() if moment is exact else chunk)

    def error(moment):
        return float((moment.moment().double() - exact.moment()).norm() / exact.moment().norm())

    assert error(compensated) < 2e-7 < 10 * error(compensated) < error(plain)
    half = SecondMoment(24, dtype=torch.float32, compensated=True)
    half.add(chunk)
    half.merge(compensated)
    assert half.count == 4 * 4001
    again = SecondMoment.from_moment(exact.moment(), exact.count)
    again.add(chunk.double())
    torch.testing.assert_close(half.moment(), again.moment(), rtol=2e-7, atol=0)


def test_unusable_moments():
    with pytest.raises(SecondMomentError, match="empty"):
        SecondMoment(4).factor()
    zero = SecondMoment.from_moment(torch.zeros(4, 4), 10)
    with pytest.raises(SecondMomentError, match="zero or not finite"):
        zero.factor()
    broken = SecondMoment.from_moment(torch.full((4, 4), float("nan")), 10)
    with pytest.raises(SecondMomentError, match="not finite"):
        broken.factor()
    skewed = torch.eye(3) + torch.ones(3, 3).triu(1)
    with pytest.raises(InvalidArgumentError, match=r"symmetric, but differs .* by 1"):
        SecondMoment.from_moment(skewed, 10)
    indefinite = SecondMoment.from_moment(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 10)
    with pytest.raises(SecondMomentError, match=r"of 10 keys is not positive definite"):
        indefinite.factor()
    with pytest.raises(InvalidArgumentError, match="square"):
        SecondMoment.from_moment(torch.zeros(3, 4), 10)
    with pytest.raises(InvalidArgumentError, match="count"):
        SecondMoment.from_moment(torch.eye(3), 0)
    with pytest.raises(InvalidArgumentError, match="float16"):
        SecondMoment(3, dtype=torch.float16)
    for damping in (-1.0, "strong"):
        with pytest.raises(InvalidArgumentError, match="damping must be 'auto' or finite"):
            SecondMoment(3, damping=damping)
    with pytest.raises(InvalidArgumentError, match="compensated=True is for dtype float32"):
        SecondMoment(3, compensated=True)
