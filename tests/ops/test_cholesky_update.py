"""cholesky_update_ against refactorised float64 references, and what it refuses to write."""

import pytest
import torch

from rome_fast.errors import InvalidArgumentError
from rome_fast.ops import cholesky_update_
from rome_fast.testing import CanaryBuffer, assert_close, with_strides

DTYPES = [torch.float64, torch.float32]
STRIDES = ["row_major", "column_major", "strided"]
# One block of 8 rows and of 128 columns, and a size on either side.
SIZES = [1, 7, 8, 9, 127, 128, 129, 301]


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def sample_moment(d, decades=1.0):
    """C [d, d], rotated so that no diagonal scaling undoes a spread of scales."""
    scales = torch.logspace(0, -decades, d, dtype=torch.float64)
    samples = randn(3 * d + 3, d) * scales @ torch.linalg.qr(randn(d, d, seed=1))[0]
    return samples.T @ samples / len(samples)


@pytest.mark.covering("dtype,backend", "strides", "d,backend")
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strides", STRIDES)
def test_update_matches_a_refactorisation(backend, dtype, strides, d):
    moment, x = sample_moment(d), randn(d, seed=2)
    factor = with_strides(torch.linalg.cholesky(moment).to(dtype), strides)
    assert cholesky_update_(factor, x, backend=backend).item() is True
    assert_close(factor.tril(), torch.linalg.cholesky(moment + torch.outer(x, x)), dtype)


@pytest.mark.covering("dtype,backend", "strides", "d")
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strides", STRIDES)
def test_downdate_matches_a_refactorisation(backend, dtype, strides, d):
    moment, x = sample_moment(d), randn(d, seed=2)
    larger = torch.linalg.cholesky(moment + torch.outer(x, x))
    factor = with_strides(larger.to(dtype), strides)
    assert cholesky_update_(factor, x, downdate=True, backend=backend).item() is True
    # Taking x out of what it dominates magnifies the rounding of the factor.
    error = (factor.double().tril() - torch.linalg.cholesky(moment)).norm() / moment.norm()
    assert error < (1e-10 if dtype == torch.float64 else 1e-3)


@pytest.mark.covering
@pytest.mark.parametrize("strides", STRIDES)
def test_ill_conditioned_factor_keeps_its_small_directions(backend, strides):
    """Condition number 1e8: the smallest eigenvalues must survive both directions."""
    d = 97
    moment, x = sample_moment(d, decades=4), randn(d, seed=2)
    start = torch.linalg.cholesky(moment)
    factor = with_strides(start, strides)
    cholesky_update_(factor, x, backend=backend)
    product = factor.tril() @ factor.tril().T
    assert_close(product, moment + torch.outer(x, x))
    expected = torch.linalg.cholesky(moment + torch.outer(x, x))
    torch.testing.assert_close(factor.diagonal(), expected.diagonal(), rtol=1e-7, atol=0)
    cholesky_update_(factor, x, downdate=True, backend=backend)
    torch.testing.assert_close(factor.diagonal(), start.diagonal(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_many_updates_and_downdates_return_to_the_start(backend, dtype, tolerance):
    d, edits = 40, 60
    start = torch.linalg.cholesky(sample_moment(d)).to(dtype)
    factor, vectors = start.clone(), 0.1 * randn(edits, d, seed=3)
    for x in vectors:
        cholesky_update_(factor, x, backend=backend)
    moment = start.double() @ start.double().T + vectors.T @ vectors
    assert_close(factor, torch.linalg.cholesky(moment), dtype)
    for x in vectors.flip(0):
        assert cholesky_update_(factor, x, downdate=True, backend=backend).item() is True
    assert ((factor - start).norm() / start.norm()).item() < tolerance


@pytest.mark.covering
@pytest.mark.parametrize("vector_dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_vector_of_any_dtype_and_stride_is_left_alone(backend, vector_dtype):
    moment = sample_moment(20)
    factor = torch.linalg.cholesky(moment)
    x = randn(40, seed=2).to(vector_dtype)[::2]
    before = x.clone()
    cholesky_update_(factor, x, backend=backend)
    assert torch.equal(x, before)
    assert_close(factor, torch.linalg.cholesky(moment + torch.outer(x.double(), x.double())))


@pytest.mark.covering("transposed,backend", "dtype", "downdate")
@pytest.mark.parametrize("downdate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_strides_are_honoured_and_the_upper_part_is_left_alone(
    backend, dtype, transposed, downdate
):
    d = 137
    factor = torch.linalg.cholesky(sample_moment(d)).to(dtype).contiguous()
    x = factor.double() @ randn(d, seed=2) / (2 * d**0.5)  # 1 - x^T C^-1 x is about 3/4
    factor[torch.ones(d, d, dtype=torch.bool).triu(1)] = 55.0
    target = CanaryBuffer(factor, transposed)
    start = target.view.clone()
    options = dict(downdate=downdate, backend=backend)
    assert cholesky_update_(target.view, x, **options).item() is True
    target.assert_intact()
    upper = torch.ones(d, d, dtype=torch.bool).triu(1)
    assert (target.view[upper] == 55.0).all()
    assert not torch.equal(target.view.tril(), start.tril())
    nan_above = factor.clone()
    nan_above[upper] = float("nan")
    cholesky_update_(nan_above, x, **options)
    assert nan_above[upper].isnan().all()
    assert_close(nan_above.tril(), target.view.tril())


def refused_cases():
    nan, inf = float("nan"), float("inf")
    factor = torch.linalg.cholesky(sample_moment(9))
    inside, broken, endless = factor[:, 0].clone(), factor.clone(), factor.clone()
    broken[6, 2], endless[8, 8] = nan, inf
    singular = factor.clone()
    singular[4, 4] = 0
    one_nan = torch.ones(9, dtype=torch.float64)
    one_nan[5] = nan
    return {
        "not positive definite": (factor, 10 * torch.ones(9), True),
        "semidefinite": (factor, inside, True),
        "below the threshold": (factor, inside * (1 - 1e-15), True),
        "nan vector": (factor, one_nan, False),
        "nan factor": (broken, 1e-3 * torch.ones(9), False),
        "infinite factor": (endless, 1e-3 * torch.ones(9), False),
        "singular factor": (singular, torch.ones(9), False),
        "overflow": (factor, torch.full((9,), 1e200, dtype=torch.float64), False),
    }


@pytest.mark.covering("case,backend", "strides")
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("case", refused_cases())
def test_refused_update_leaves_the_bits(backend, case, strides):
    factor, x, downdate = refused_cases()[case]
    factor = with_strides(factor, strides)
    before = factor.clone()
    applied = cholesky_update_(factor, x, downdate=downdate, backend=backend)
    assert applied.shape == ()
    assert applied.dtype == torch.bool
    assert applied.item() is False
    assert torch.equal(factor.nan_to_num(7.5), before.nan_to_num(7.5))


def test_downdate_above_the_threshold_is_applied(backend):
    """x = s L e_1 leaves 1 - s^2, which the test above refuses for a slightly larger s."""
    factor = torch.linalg.cholesky(sample_moment(9))
    x = factor[:, 0] * (1 - 1e-13)
    assert cholesky_update_(factor, x, downdate=True, backend=backend).item() is True
    assert factor.isfinite().all()


def test_a_factor_of_nothing_is_updated_to_nothing(backend):
    assert cholesky_update_(torch.zeros(0, 0), torch.zeros(0), backend=backend).item() is True


@pytest.mark.parametrize("strides", STRIDES)
def test_threads_share_a_large_update_without_changing_a_bit(native_library, strides):
    d = 1600
    factor = (
        torch.eye(d) + torch.randn(d, d, generator=torch.Generator().manual_seed(0)).tril_() / d
    )
    x = randn(d, seed=1)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        updated = with_strides(factor.clone(), strides)
        cholesky_update_(updated, x, backend="native")
        results.append(updated)
    assert torch.equal(*results)
    moment = factor.double() @ factor.double().T + torch.outer(x, x)
    assert_close(results[0], torch.linalg.cholesky(moment))


@pytest.mark.covering
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("downdate", [False, True])
def test_cholesky_update_opcheck(dtype, downdate):
    # The native kernel when it is loaded, else the default: both sit behind the same schema.
    op = torch.ops.rome_fast.cholesky_update_.default
    factor, x = torch.linalg.cholesky(sample_moment(9)).to(dtype), 0.1 * randn(9, seed=2)
    for target in (factor, factor.contiguous(), CanaryBuffer(factor).view):
        torch.library.opcheck(op, (target, x, downdate))


@pytest.mark.exhaustive
@pytest.mark.covering
@pytest.mark.parametrize("dynamic", [False, True])
def test_cholesky_update_compiles_fullgraph(backend, dynamic):
    factor, x = torch.linalg.cholesky(sample_moment(9)).contiguous(), randn(9, seed=2)
    eager = factor.clone()

    def step(factor, x):
        applied = cholesky_update_(factor, x, backend=backend)
        return applied & cholesky_update_(factor, 0.1 * x, downdate=True, backend=backend)

    # aot_eager: the whole of tracing and functionalisation, without compiling C++.
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert compiled(factor, x).item() is True
    step(eager, x)
    assert torch.equal(factor, eager)


def test_cholesky_update_bumps_the_version_of_the_factor_alone(backend):
    factor, x = torch.eye(4, requires_grad=True), torch.ones(4, requires_grad=True)
    versions = factor._version, x._version
    assert not cholesky_update_(factor, x, backend=backend).requires_grad
    assert factor._version > versions[0]
    assert x._version == versions[1]
    assert factor.grad_fn is None


@pytest.mark.covering
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(factor=torch.zeros(4, 5)), r"factor must have shape \[5, 5\], got \[4, 5\]"),
        (dict(factor=torch.zeros(4)), "factor must have 2 dimensions"),
        (dict(factor=torch.eye(4, dtype=torch.bfloat16)), "factor must be one of float64, float32"),
        (dict(factor=torch.ones(4, 1).expand(4, 4)), "factor is expanded"),
        (dict(vector=torch.ones(5)), r"vector must have shape \[4\], got \[5\]"),
        (dict(vector=torch.ones(4, dtype=torch.int64)), "vector must be one of"),
        (dict(vector=torch.ones(4, device="meta")), "vector is on meta but factor is on cpu"),
    ],
)
def test_cholesky_update_refuses_by_name(backend, change, message):
    arguments = dict(factor=torch.eye(4), vector=torch.ones(4))
    with pytest.raises(InvalidArgumentError, match=message):
        cholesky_update_(**(arguments | change), backend=backend)


def test_vector_that_overflows_the_factor_is_refused(backend):
    factor = torch.eye(3)
    vector = torch.tensor([1e100, 0, 0], dtype=torch.float64)
    assert not cholesky_update_(factor, vector, backend=backend)
    assert torch.equal(factor, torch.eye(3))
