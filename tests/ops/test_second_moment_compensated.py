"""second_moment_update_ with compensation: what rounds off a float32 sum is not lost."""

import pytest
import torch

from rome_fast.errors import InvalidArgumentError
from rome_fast.ops import second_moment_update_
from rome_fast.testing import CanaryBuffer, assert_close


def sample(n, d, seed=0):
    """moment_sum and its compensation from the middle of a run, keys with a mean, a mask."""
    generator = torch.Generator().manual_seed(seed)
    moment_sum = torch.randn(d, d, generator=generator)
    compensation = moment_sum * 2**-26 * torch.randn(d, d, generator=generator).sign()
    keys = torch.randn(n, d, generator=generator) + 0.5
    return moment_sum, compensation, keys, torch.rand(n, generator=generator) < 0.7


def value(moment_sum, compensation):
    return moment_sum.double() + compensation.double()


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.exhaustive
def test_error_does_not_grow_with_the_number_of_adds(backend):
    d, adds = 24, 4000
    generator = torch.Generator().manual_seed(0)
    exact = torch.zeros(d, d, dtype=torch.float64)
    plain, moment_sum, compensation = torch.zeros(3, d, d)
    for _ in range(adds):
        keys = torch.randn(8, d, generator=generator) + 0.5
        exact += (keys.double().T @ keys.double()).tril()
        second_moment_update_(plain, keys, backend=backend)
        second_moment_update_(moment_sum, keys, compensation=compensation, backend=backend)
    assert relative_error(plain.double(), exact) > 5e-7
    assert relative_error(value(moment_sum, compensation), exact) < 2e-8
    # The sum alone is the value rounded, not a sum that drifts beside its compensation.
    assert torch.equal(moment_sum, value(moment_sum, compensation).float())


# Sizes around the tiles, as in test_second_moment; the last has more than one slab of rows.
@pytest.mark.covering("key_dtype,backend", "n,d")
@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 5), (513, 48), (64, 193), (1030, 101)])
@pytest.mark.parametrize("key_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_compensated_sum_matches_reference(backend, key_dtype, n, d):
    moment_sum, compensation, keys, mask = sample(n, d)
    keys = keys.to(key_dtype)
    rows = keys.double()[mask]
    expected = value(moment_sum, compensation).tril() + (rows.T @ rows).tril()
    second_moment_update_(moment_sum, keys, mask, compensation=compensation, backend=backend)
    # torch multiplies the n rows in float32 in whatever order its BLAS takes; the kernel in tiles.
    tolerance = 2e-7 if backend == "native" else 2e-7 + n**0.5 * 2**-24
    assert relative_error(value(moment_sum, compensation).tril(), expected) < tolerance


def test_small_terms_are_kept_exactly(backend):
    """Each product is below half an ulp of the sum: plain float32 adds nothing at all."""
    moment_sum, compensation = torch.eye(3), torch.zeros(3, 3)
    keys = torch.full((1, 3), 2.0**-13)
    for _ in range(1000):
        second_moment_update_(moment_sum, keys, compensation=compensation, backend=backend)
    expected = (torch.eye(3, dtype=torch.float64) + 1000 * 2.0**-26).tril()
    assert torch.equal(value(moment_sum, compensation).tril(), expected)


@pytest.mark.covering
@pytest.mark.parametrize("transposed", [False, True])
def test_strides_of_both_are_honoured(backend, transposed):
    moment_sum, compensation, keys, mask = sample(130, 101)
    target = CanaryBuffer(moment_sum, transposed)
    lost = CanaryBuffer(compensation, not transposed)
    second_moment_update_(target.view, keys, mask, compensation=lost.view, backend=backend)
    second_moment_update_(moment_sum, keys, mask, compensation=compensation, backend=backend)
    target.assert_intact()
    lost.assert_intact()
    assert torch.equal(target.view, moment_sum)
    assert torch.equal(lost.view, compensation)


def test_upper_triangles_are_left_alone(backend):
    moment_sum, compensation, keys, mask = sample(100, 61)
    upper = torch.ones(61, 61, dtype=torch.bool).triu(1)
    moment_sum[upper] = float("nan")
    compensation[upper] = float("inf")
    second_moment_update_(moment_sum, keys, mask, compensation=compensation, backend=backend)
    assert moment_sum[upper].isnan().all()
    assert compensation[upper].isinf().all()
    assert value(moment_sum, compensation)[~upper].isfinite().all()


@pytest.mark.exhaustive
@pytest.mark.covering
@pytest.mark.parametrize("dynamic", [False, True])
def test_compensated_sum_compiles_fullgraph(backend, dynamic):
    moment_sum, compensation, keys, mask = sample(40, 30)
    eager_sum, eager_compensation = moment_sum.clone(), compensation.clone()

    def step(moment_sum, compensation, keys, mask):
        second_moment_update_(moment_sum, keys, mask, compensation=compensation, backend=backend)
        return value(moment_sum, compensation).diagonal().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    trace = compiled(moment_sum, compensation, keys, mask)
    assert_close(trace, step(eager_sum, eager_compensation, keys, mask))
    assert torch.equal(moment_sum, eager_sum)
    assert torch.equal(compensation, eager_compensation)


def test_compensation_must_be_a_matrix_of_its_own(backend):
    moment_sum = torch.zeros(3, 3)
    with pytest.raises(InvalidArgumentError, match="compensation is moment_sum"):
        second_moment_update_(
            moment_sum, torch.ones(2, 3), compensation=moment_sum, backend=backend
        )
    assert not moment_sum.any()
