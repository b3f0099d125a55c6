"""rank_one_update_ and rank_one_solve_apply_ against float64 references and against each other."""

import pytest
import torch

from rome_fast.errors import InvalidArgumentError
from rome_fast.ops import rank_one_solve_apply_, rank_one_update_
from rome_fast.testing import CanaryBuffer, assert_close, with_strides

WEIGHT_DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["out_in", "in_out"]
FACTOR_STRIDES = ["row_major", "column_major", "strided"]


def compute_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def sample_weight(d_value, d_key, layout, dtype=torch.float32, seed=0):
    shape = (d_value, d_key) if layout == "out_in" else (d_key, d_value)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def sample_problem(d_value, d_key, seed=1):
    """C [d_key, d_key], its lower factor, key, denominator_key, residual; all float64."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    scales = torch.logspace(0, -1, d_key, dtype=torch.float64)
    samples = randn(3 * d_key + 3, d_key) * scales
    moment = samples.T @ samples / len(samples)
    key = randn(d_key) * scales
    denominator_key = key + 0.1 * randn(d_key) * scales
    return moment, torch.linalg.cholesky(moment), key, denominator_key, randn(d_value)


def reference(weight, layout, moment, key, denominator_key, residual):
    """u, v, denominator and the edited weight in float64, by a general solver."""
    w = torch.linalg.solve(moment, key)
    u = w / w.norm()
    denominator = denominator_key @ u
    v = residual / denominator
    update = torch.outer(v, u) if layout == "out_in" else torch.outer(u, v)
    return u, v, denominator, weight.double() + update


@pytest.mark.covering("dtype,backend", "layout", "transposed")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_rank_one_update_matches_reference_and_honours_strides(backend, dtype, layout, transposed):
    weight = sample_weight(37, 53, layout, dtype)
    u = torch.randn(53, generator=torch.Generator().manual_seed(2))
    v = torch.randn(37, generator=torch.Generator().manual_seed(3))
    rows, cols = (v, u) if layout == "out_in" else (u, v)
    expected = weight.double() + torch.outer(rows.double(), cols.double())
    target = CanaryBuffer(weight, transposed)
    rank_one_update_(target.view, u, v, weight_layout=layout, backend=backend)
    target.assert_intact()
    assert_close(target.view, expected)
    contiguous = weight.T.contiguous().T if transposed else weight
    rank_one_update_(contiguous, u, v, weight_layout=layout, backend=backend)
    assert torch.equal(contiguous, target.view)


@pytest.mark.covering("dtype,backend", "layout")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
def test_rank_one_update_writes_the_defined_bits(backend, dtype, layout):
    """Product and sum are rounded separately: the same bits on every backend and CPU."""
    weight = sample_weight(130, 517, layout, dtype)
    u = torch.randn(517, generator=torch.Generator().manual_seed(2)).to(compute_dtype(dtype))
    v = torch.randn(130, generator=torch.Generator().manual_seed(3)).to(compute_dtype(dtype))
    product = v[:, None] * u[None, :] if layout == "out_in" else u[:, None] * v[None, :]
    expected = (weight.to(compute_dtype(dtype)) + product).to(dtype)
    rank_one_update_(weight, u, v, weight_layout=layout, backend=backend)
    assert torch.equal(weight, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rank_one_update_rounds_every_half_like_torch(backend, dtype):
    """Every finite 16-bit value, moved by float32 steps from subnormal to overflowing."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    weight = values[values.isfinite()][None, :].repeat(4, 1)
    u = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0))
    v = torch.tensor([1e-8, 1e-4, 1.0, 3e4])
    expected = (weight.float() + torch.outer(v, u)).to(dtype)
    rank_one_update_(weight, u, v, weight_layout="out_in", backend=backend)
    assert torch.equal(weight, expected)


@pytest.mark.covering("dtype,backend", "factor_dtype", "layout", "strides")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("factor_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strides", FACTOR_STRIDES)
def test_solve_apply_matches_reference(backend, dtype, layout, factor_dtype, strides):
    d_value, d_key = 21, 130
    moment, factor, key, denominator_key, residual = sample_problem(d_value, d_key)
    weight = sample_weight(d_value, d_key, layout, dtype)
    u, v, denominator, edited = reference(weight, layout, moment, key, denominator_key, residual)
    factor = with_strides(factor.to(factor_dtype), strides)
    result = rank_one_solve_apply_(
        weight,
        factor,
        key,
        denominator_key,
        residual,
        weight_layout=layout,
        min_denominator=0.1,
        backend=backend,
    )
    precision = torch.float64 if torch.float64 == factor_dtype == dtype else torch.float32
    assert result[4].item() is True
    assert_close(result[0], u, precision)
    assert_close(result[1], v, precision)
    assert_close(result[2], denominator, precision)
    assert_close(result[3], v.norm(), precision)
    assert_close(weight, edited, precision if dtype in (torch.float32, torch.float64) else dtype)


@pytest.mark.covering("strides,backend", "d_key")
@pytest.mark.parametrize("d_key", [1, 5, 255, 256, 257, 600])
@pytest.mark.parametrize("strides", FACTOR_STRIDES)
def test_solve_apply_solves_at_every_block_edge(backend, d_key, strides):
    moment, factor, key, _, residual = sample_problem(3, d_key)
    factor = with_strides(factor, strides)
    upper = torch.ones(d_key, d_key, dtype=torch.bool).triu(1)
    factor[upper] = float("nan")  # never read
    u, *_ = rank_one_solve_apply_(
        torch.zeros(3, d_key, dtype=torch.float64),
        factor,
        key,
        key,
        residual,
        weight_layout="out_in",
        min_denominator=0.1,
        backend=backend,
    )
    w = torch.linalg.solve(moment, key)
    assert_close(u, w / w.norm())
    assert_close(moment @ (u * w.norm()), key)  # the residual, not only closeness


@pytest.fixture(scope="module")
def large_factor():
    """A well-conditioned lower factor, large enough for several threads to share the solve."""
    d = 4400
    factor = torch.randn(d, d, generator=torch.Generator().manual_seed(0)).tril_()
    return factor.mul_(0.2 / d**0.5).fill_diagonal_(1.0)


@pytest.mark.parametrize("strides", ["row_major", "column_major"])
def test_threads_share_a_large_solve_without_changing_a_bit(native_library, large_factor, strides):
    factor = with_strides(large_factor, strides)
    key = torch.randn(len(factor), generator=torch.Generator().manual_seed(1))
    solutions = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            u, *_ = rank_one_solve_apply_(
                torch.zeros(1, len(factor), dtype=torch.float64),
                factor,
                key,
                key,
                torch.ones(1),
                weight_layout="out_in",
                min_denominator=0.1,
                backend="native",
            )
            solutions.append(u)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*solutions)
    lower = factor.double()
    back = lower @ (lower.T @ u)  # C u is parallel to the key
    assert_close(back / back.norm(), key.double() / key.double().norm())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_share_a_large_update(native_library, layout):
    weight = sample_weight(1700, 2900, layout)
    u = torch.randn(2900, generator=torch.Generator().manual_seed(2))
    v = torch.randn(1700, generator=torch.Generator().manual_seed(3))
    rows, cols = (v, u) if layout == "out_in" else (u, v)
    expected = weight + rows[:, None] * cols[None, :]
    rank_one_update_(weight, u, v, weight_layout=layout, backend="native")
    assert torch.equal(weight, expected)


def test_solve_apply_without_a_factor_uses_the_key_itself(backend):
    weight = sample_weight(6, 9, "out_in", torch.float64)
    _, _, key, denominator_key, residual = sample_problem(6, 9)
    identity = torch.eye(9, dtype=torch.float64)
    u, _, _, edited = reference(weight, "out_in", identity, key, denominator_key, residual)
    result = rank_one_solve_apply_(
        weight,
        None,
        key,
        denominator_key,
        residual,
        weight_layout="out_in",
        min_denominator=0.1,
        backend=backend,
    )
    assert_close(result[0], u)
    assert_close(weight, edited)


@pytest.mark.covering("dtype,backend", "layout")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
def test_replaying_u_and_v_gives_identical_bits(backend, dtype, layout):
    weight = sample_weight(65, 300, layout, dtype)
    replayed = weight.clone()
    _, factor, key, denominator_key, residual = sample_problem(65, 300)
    u, v, *_ = rank_one_solve_apply_(
        weight,
        factor,
        key,
        denominator_key,
        residual,
        weight_layout=layout,
        min_denominator=0.1,
        backend=backend,
    )
    assert u.dtype == v.dtype == compute_dtype(dtype)
    assert not torch.equal(weight, replayed)
    rank_one_update_(replayed, u, v, weight_layout=layout, backend=backend)
    assert torch.equal(weight, replayed)


@pytest.mark.covering
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transposed", [False, True])
def test_solve_apply_honours_the_strides_of_the_weight(backend, layout, transposed):
    weight = sample_weight(21, 40, layout)
    _, factor, key, denominator_key, residual = sample_problem(21, 40)
    target = CanaryBuffer(weight, transposed)
    arguments = (factor, key, denominator_key, residual)
    options = dict(weight_layout=layout, min_denominator=0.1, backend=backend)
    rank_one_solve_apply_(target.view, *arguments, **options)
    rank_one_solve_apply_(weight, *arguments, **options)
    target.assert_intact()
    assert torch.equal(target.view, weight)


@pytest.mark.covering("strides,backend", "inverse_dtype,backend", "d_key")
@pytest.mark.parametrize("d_key", [1, 40, 301])
@pytest.mark.parametrize("inverse_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strides", FACTOR_STRIDES)
def test_an_inverse_stands_for_the_factor(backend, strides, inverse_dtype, d_key):
    moment, _, key, denominator_key, residual = sample_problem(21, d_key)
    weight = sample_weight(21, d_key, "out_in", torch.float64)
    u, v, denominator, edited = reference(weight, "out_in", moment, key, denominator_key, residual)
    inverse = with_strides(torch.linalg.inv(moment).to(inverse_dtype), strides)
    inverse[torch.ones(d_key, d_key, dtype=torch.bool).triu(1)] = float("nan")  # never read
    before = inverse.clone()
    options = dict(weight_layout="out_in", min_denominator=0.1, inverse=inverse, backend=backend)
    result = rank_one_solve_apply_(weight, None, key, denominator_key, residual, **options)
    assert result[4].item() is True
    # The inverse was rounded, which cond(C), about 1e3 here, magnifies.
    precision = torch.float32 if inverse_dtype == torch.float64 else torch.float16
    assert_close(result[0], u, precision)
    assert_close(result[1], v, precision)
    assert_close(result[2], denominator, precision)
    assert_close(weight, edited, precision)
    assert torch.equal(inverse.nan_to_num(5.5), before.nan_to_num(5.5))


@pytest.mark.covering("half,backend", "layout", "transposed")
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_new_weight_is_rounded_in_the_same_pass(backend, layout, half, transposed):
    weight, plain = (sample_weight(37, 53, layout) for _ in range(2))
    _, factor, key, denominator_key, residual = sample_problem(37, 53)
    target, rounded = CanaryBuffer(weight), CanaryBuffer(torch.zeros_like(weight).to(half))
    if transposed:  # in another order than the weight
        rounded = CanaryBuffer(torch.zeros_like(weight).to(half), transposed=True)
    arguments = (factor, key, denominator_key, residual)
    options = dict(weight_layout=layout, min_denominator=0.1, backend=backend)
    u, v, *_ = rank_one_solve_apply_(plain, *arguments, **options)
    version = rounded.view._version
    rank_one_solve_apply_(target.view, *arguments, **options, rounded=rounded.view)
    assert torch.equal(target.view, plain)
    assert torch.equal(rounded.view, plain.to(half))
    assert rounded.view._version > version
    rank_one_update_(plain, u, v, weight_layout=layout, backend=backend)
    rank_one_update_(target.view, u, v, weight_layout=layout, rounded=rounded.view, backend=backend)
    assert torch.equal(target.view, plain)
    assert torch.equal(rounded.view, plain.to(half))
    target.assert_intact()
    rounded.assert_intact()


def test_a_refused_update_rounds_nothing(backend):
    weight, rounded = sample_weight(3, 4, "out_in"), torch.full((3, 4), 5.0).bfloat16()
    options = dict(weight_layout="out_in", min_denominator=0.1, rounded=rounded, backend=backend)
    ones = torch.ones(4)
    *_, applied = rank_one_solve_apply_(weight, None, ones, 0.01 * ones, torch.ones(3), **options)
    assert applied.item() is False
    assert (rounded == 5).all()


def refused_cases():
    nan, inf = float("nan"), float("inf")
    ones = torch.ones(4)
    orthogonal = torch.tensor([1.0, -1.0, 0.0, 0.0])
    return {
        "small denominator": dict(denominator_key=ones * 0.05),
        "zero denominator": dict(denominator_key=orthogonal, min_denominator=0.0),
        "nan key": dict(key=torch.tensor([nan, 1, 1, 1])),
        "zero key": dict(key=torch.zeros(4)),
        "infinite residual": dict(residual=torch.tensor([1.0, inf, 1.0])),
        "nan denominator_key": dict(denominator_key=torch.tensor([1.0, nan, 1.0, 1.0])),
        "singular factor": dict(factor=torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0]))),
        "large update": dict(max_norm=0.8),  # it is sqrt(3) / 2
        "overflowing v": dict(residual=torch.full((3,), 3e38), denominator_key=ones * 0.2),
    }


@pytest.mark.parametrize("case", refused_cases())
def test_refused_update_writes_nothing(backend, case):
    weight = sample_weight(3, 4, "out_in")
    before = weight.clone()
    arguments = dict(
        factor=None,
        key=torch.ones(4),
        denominator_key=torch.ones(4),
        residual=torch.ones(3),
        weight_layout="out_in",
        min_denominator=0.1,
    )
    *_, accepted = rank_one_solve_apply_(weight.clone(), **arguments, backend=backend)
    assert accepted.item() is True  # so that the change below is what refuses
    changed = arguments | refused_cases()[case]
    *_, applied = rank_one_solve_apply_(weight, **changed, backend=backend)
    assert applied.item() is False
    assert torch.equal(weight, before)


# Without d_key there is no direction to write along: v = residual / 0 is refused.
@pytest.mark.parametrize(("d_value", "d_key", "applied"), [(0, 5, True), (5, 0, False)])
def test_rank_one_ops_on_empty_weights(backend, d_value, d_key, applied):
    weight = torch.zeros(d_value, d_key)
    u, v = torch.ones(d_key), torch.ones(d_value)
    rank_one_update_(weight, u, v, weight_layout="out_in", backend=backend)
    outputs = rank_one_solve_apply_(
        weight, None, u, u, v, weight_layout="out_in", min_denominator=0.1, backend=backend
    )
    assert outputs[0].shape == (d_key,)
    assert outputs[1].shape == (d_value,)
    assert outputs[4].item() is applied


@pytest.mark.covering(dtype=[torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rank_one_opcheck(dtype):
    # The native kernels when they are loaded, else the defaults, behind the same schemas.
    _, factor, key, denominator_key, residual = sample_problem(6, 9)
    update = torch.ops.rome_fast.rank_one_update_.default
    solve_apply = torch.ops.rome_fast.rank_one_solve_apply_.default
    weight = sample_weight(6, 9, "out_in", dtype)
    for target in (weight, weight.T.contiguous().T, CanaryBuffer(weight).view):
        torch.library.opcheck(update, (target, key.float(), residual.float()))
        for lower in (factor, None):
            arguments = (target, lower, key, denominator_key, residual, 0.1, 5.0)
            torch.library.opcheck(solve_apply, arguments)
        arguments = (target, None, key, denominator_key, residual, 0.1, 5.0, factor)
        torch.library.opcheck(solve_apply, arguments)
    rounded = CanaryBuffer(torch.zeros(6, 9, dtype=torch.float16)).view
    weight = sample_weight(6, 9, "out_in")
    torch.library.opcheck(update, (weight, key.float(), residual.float(), rounded))
    arguments = (weight, factor, key, denominator_key, residual, 0.1, 5.0, None, rounded)
    torch.library.opcheck(solve_apply, arguments)


@pytest.mark.covering
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rank_one_ops_compile_fullgraph(backend, layout, dynamic):
    weight = sample_weight(6, 9, layout)
    eager_weight = weight.clone()
    _, factor, key, denominator_key, residual = sample_problem(6, 9)

    def step(weight):
        options = dict(weight_layout=layout, backend=backend)
        u, v, *_ = rank_one_solve_apply_(
            weight, factor, key, denominator_key, residual, min_denominator=0.1, **options
        )
        rank_one_update_(weight, u, v, **options)
        return u, v

    # aot_eager: the whole of tracing and functionalisation, without compiling C++.
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    u, v = compiled(weight)
    eager_u, eager_v = step(eager_weight)
    assert torch.equal(u, eager_u)
    assert torch.equal(v, eager_v)
    assert torch.equal(weight, eager_weight)


def test_rank_one_update_takes_parameters_and_records_nothing(backend):
    weight = torch.nn.Parameter(sample_weight(4, 5, "out_in"))
    before, version = weight.detach().clone(), weight._version
    u = torch.ones(5, requires_grad=True)
    outputs = rank_one_solve_apply_(
        weight,
        None,
        u,
        u,
        torch.ones(4),
        weight_layout="out_in",
        min_denominator=0.1,
        backend=backend,
    )
    assert not any(output.requires_grad for output in outputs)
    assert weight.grad_fn is None
    assert weight._version > version  # a graph that saved the old weight must notice
    assert not torch.equal(weight, before)


@pytest.mark.covering
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weight=torch.zeros(3)), "weight must have 2 dimensions"),
        (dict(weight=torch.zeros(3, 4, dtype=torch.int8)), "weight must be one of"),
        (dict(weight=torch.zeros(3, 1).expand(3, 4)), "weight is expanded"),
        (dict(factor=torch.eye(5)), r"factor must have shape \[4, 4\]"),
        (dict(factor=torch.eye(4, dtype=torch.float16)), "factor must be one of"),
        (dict(inverse=torch.eye(4)), "factor and inverse are both given"),
        (dict(factor=None, inverse=torch.eye(5)), r"inverse must have shape \[4, 4\]"),
        (dict(factor=None, inverse=torch.eye(4).half()), "inverse must be one of"),
        (dict(rounded=torch.zeros(3, 4)), "rounded must be one of bfloat16, float16"),
        (dict(rounded=torch.zeros(4, 3).half()), r"rounded must have shape \[3, 4\]"),
        (dict(rounded=torch.zeros(3, 1).half().expand(3, 4)), "rounded is expanded"),
        (
            dict(weight=torch.zeros(3, 4).double(), rounded=torch.zeros(3, 4).half()),
            "rounded needs a float32 weight, got torch.float64",
        ),
        (dict(key=torch.ones(5)), r"key must have shape \[4\]"),
        (dict(denominator_key=torch.ones(3)), r"denominator_key must have shape \[4\]"),
        (dict(residual=torch.ones(4)), r"residual must have shape \[3\]"),
        (dict(weight_layout="conv"), "weight_layout must be 'out_in' or 'in_out', got 'conv'"),
        (dict(min_denominator=-1.0), "min_denominator must be finite and >= 0, got -1.0"),
        (dict(max_norm=-1.0), "max_norm must be >= 0, got -1.0"),
        (dict(max_norm=float("nan")), "max_norm must be >= 0, got nan"),
        (dict(key=torch.ones(4, device="meta")), "key is on meta but weight is on cpu"),
    ],
)
def test_solve_apply_refuses_by_name(backend, change, message):
    arguments = dict(
        weight=torch.zeros(3, 4),
        factor=torch.eye(4),
        key=torch.ones(4),
        denominator_key=torch.ones(4),
        residual=torch.ones(3),
        weight_layout="out_in",
        min_denominator=0.1,
    )
    with pytest.raises(InvalidArgumentError, match=message):
        rank_one_solve_apply_(**(arguments | change), backend=backend)
