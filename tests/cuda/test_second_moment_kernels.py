"""The CUDA kernels of second_moment_update_, each by its name, against float64."""

from __future__ import annotations

import pytest
import torch

from rome_fast.testing import CanaryBuffer

HALF = [torch.bfloat16, torch.float16]
KERNELS = [
    *(("wgmma", dtype) for dtype in [*HALF, torch.float32]),
    *(("mma", dtype) for dtype in [*HALF, torch.float32]),
    *(("naive", dtype) for dtype in [*HALF, torch.float32]),
]
# Of each kernel one; those of all dtypes are compared with the reference.
FEW = [
    *(("wgmma", torch.bfloat16), ("wgmma", torch.float32)),
    *(("mma", torch.float16), ("naive", torch.float32)),
]
SUMS = [torch.float32, torch.float64]
# Of the sum of |k_i k_j| over a few hundred rows: products of half precision are exact in float32,
# those of float32 keys are good to about 2^-21; the tensor cores cut off.
TOLERANCE = 2e-6


@pytest.fixture(params=KERNELS, ids=lambda p: f"{p[0]}-{str(p[1]).removeprefix('torch.')}")
def key_dtype(request, monkeypatch):
    """A dtype of keys, with the kernel that is to take them."""
    kernel, dtype = request.param
    monkeypatch.setenv("ROME_FAST_CUDA_KERNEL", kernel)
    return dtype


@pytest.fixture
def keys_of(key_dtype):
    return lambda n, d: torch.randn(n, d).to(key_dtype)


def start(d, sum_dtype=torch.float32):
    """Not symmetric, so that a transposed write shows; nothing may read what is NaN above."""
    moment_sum = torch.randn(d, d, dtype=torch.float64).to(sum_dtype)
    upper = torch.ones(d, d, dtype=torch.bool).triu(1)
    moment_sum[upper] = float("nan")
    return moment_sum


def reference(moment_sum, keys, mask=None):
    rows = keys.double() if mask is None else keys.double()[mask]
    return moment_sum.double() + (rows.T @ rows)


def assert_sums(actual, expected, keys, tolerance=TOLERANCE):
    """The lower triangle is right, of the rest every element is still NaN."""
    lower = torch.ones(actual.shape, dtype=torch.bool).tril()
    assert actual[~lower].isnan().all()
    scale = expected.abs()[lower].max() if len(keys) else 1
    error = (actual.double() - expected)[lower].abs().max() / scale if actual.numel() else 0
    assert error < tolerance, error


@pytest.mark.covering("key_dtype", "n,d", "sum_dtype", "emulated")
@pytest.mark.parametrize("sum_dtype", SUMS, ids=str)
# One element; less than a stage; more than a tile, and not a multiple of 8; more rows than the ring
# of stages holds; more tiles than the 3 blocks of the persistent grid.
@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 8), (65, 137), (300, 40), (70, 392)])
def test_matches_reference(emulated, keys_of, sum_dtype, n, d):
    moment_sum, keys = start(d, sum_dtype), keys_of(n, d)
    mask = torch.rand(n) < 0.7
    keys[~mask] = float("nan")
    expected = reference(moment_sum, keys, mask)
    emulated.second_moment_update_(moment_sum, keys, mask)
    assert_sums(moment_sum, expected, keys)


@pytest.mark.covering
@pytest.mark.parametrize("sum_dtype", SUMS, ids=str)
def test_float64_keys(emulated, sum_dtype):
    moment_sum, keys = start(70, sum_dtype), torch.randn(50, 70, dtype=torch.float64)
    if sum_dtype == torch.float32:
        with pytest.raises(RuntimeError, match="moment_sum must be float64 for float64 keys"):
            emulated.second_moment_update_(moment_sum, keys, None)
        return
    expected = reference(moment_sum, keys)
    emulated.second_moment_update_(moment_sum, keys, None)
    assert_sums(moment_sum, expected, keys, 1e-14)


@pytest.mark.covering(key_dtype=FEW)
def test_calls_add_up_without_a_mask(emulated, keys_of):
    moment_sum = start(72)
    expected = moment_sum.double()
    for n in (64, 5, 129):
        keys = keys_of(n, 72)
        expected = reference(expected, keys)
        emulated.second_moment_update_(moment_sum, keys, None)
    assert_sums(moment_sum, expected, keys)


@pytest.mark.covering(key_dtype=FEW)
@pytest.mark.parametrize("kept", ["none", "last", "all but one stage"])
def test_masks_that_drop_whole_stages(emulated, keys_of, kept):
    moment_sum, keys = start(24), keys_of(200, 24)
    mask = torch.full((200,), kept == "all but one stage")
    mask[64:128] = False
    mask[-1] = kept != "none"
    keys[~mask] = float("inf")
    expected = reference(moment_sum, keys, mask)
    emulated.second_moment_update_(moment_sum, keys, mask)
    assert_sums(moment_sum, expected, keys)


@pytest.mark.covering(key_dtype=FEW)
def test_more_rows_than_go_into_one_flush(_emulated, keys_of):
    """4096 rows are added to the sum at a time. Squares alone: what is cut off adds up."""
    moment_sum, keys = start(8, torch.float64), keys_of(4096 + 100, 8).abs()
    expected = reference(moment_sum, keys)
    _emulated.second_moment_update_(moment_sum, keys, None)
    assert_sums(moment_sum, expected, keys, 4e-5)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_the_tensor_cores_cut_off(_emulated, monkeypatch, dtype):
    """An H200 lost 9.6e-6 (bfloat16) and 1.9e-5 (float16) of a sum of squares in 4096 rows."""
    monkeypatch.setenv("ROME_FAST_CUDA_KERNEL", "wgmma")
    moment_sum, keys = torch.zeros(8, 8, dtype=torch.float64), torch.randn(4096, 8).to(dtype)
    expected = keys.double().square().sum(0)
    _emulated.second_moment_update_(moment_sum, keys, None)
    lost = (expected - moment_sum.diagonal()) / expected
    assert 5e-6 < lost.min() and lost.max() < 2.5e-5, lost


@pytest.mark.covering
@pytest.mark.parametrize(("allow_tf32", "tolerance"), [(False, TOLERANCE), (True, 1e-5)])
@pytest.mark.parametrize("sum_dtype", SUMS, ids=str)
def test_planes_in_parts(_emulated, monkeypatch, allow_tf32, tolerance, sum_dtype):
    """Squares in more rows than go into one flush, and than the emulation's memory takes."""
    monkeypatch.setenv("ROME_FAST_CUDA_KERNEL", "wgmma")
    moment_sum, keys = start(24, sum_dtype), torch.randn(2 * 1024 + 70, 24).abs()
    mask = torch.rand(len(keys)) < 0.9
    keys[~mask] = float("nan")
    expected = reference(moment_sum, keys, mask)
    _emulated.second_moment_update_(moment_sum, keys, mask, None, allow_tf32)
    assert_sums(moment_sum, expected, keys, tolerance)


@pytest.mark.parametrize(("allow_tf32", "tolerance"), [(False, 2**-21), (True, 2**-14)])
def test_planes_hold_keys_of_every_size(_emulated, monkeypatch, allow_tf32, tolerance):
    """Each product is right by itself: a key's planes are as exact as a float32 (or a TF32)."""
    monkeypatch.setenv("ROME_FAST_CUDA_KERNEL", "wgmma")
    keys = torch.randn(1, 130) * 2.0 ** torch.randint(-40, 40, (1, 130))
    moment_sum, expected = torch.zeros(130, 130), keys.double().T @ keys.double()
    _emulated.second_moment_update_(moment_sum, keys, None, None, allow_tf32)
    assert (((moment_sum - expected) / expected).tril().abs() < tolerance).all()


@pytest.mark.covering
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_keys_that_are_not_finite_spoil_their_own_sums(_emulated, keys_of, value):
    moment_sum, keys = start(40), keys_of(70, 40)
    expected = reference(moment_sum, keys)
    keys[5, 7] = value
    _emulated.second_moment_update_(moment_sum, keys, None)
    lower = torch.ones(40, 40, dtype=torch.bool).tril()
    spoiled = torch.zeros_like(lower)
    spoiled[7], spoiled[:, 7] = True, True
    assert torch.equal(moment_sum[lower].isfinite(), ~spoiled[lower])
    expected[spoiled] = moment_sum[spoiled] = 0
    assert (moment_sum.double() - expected)[lower].abs().max() < TOLERANCE * 70


@pytest.mark.covering(key_dtype=FEW)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sum_dtype", SUMS, ids=str)
def test_strides_of_the_sum_are_honoured(emulated, keys_of, sum_dtype, transposed):
    keys, mask = keys_of(70, 136), torch.rand(70) < 0.7
    target = CanaryBuffer(start(136, sum_dtype), transposed)
    expected = reference(target.view, keys, mask)
    strided_mask = mask.repeat_interleave(2)[::2]
    emulated.second_moment_update_(target.view, keys, strided_mask)
    target.assert_intact()
    assert_sums(target.view, expected, keys)


@pytest.mark.covering(key_dtype=FEW)
def test_a_sum_stored_by_columns(emulated, keys_of):
    moment_sum, keys = start(136).T.contiguous().T, keys_of(70, 136)
    expected = reference(moment_sum, keys)
    emulated.second_moment_update_(moment_sum, keys, None)
    assert_sums(moment_sum, expected, keys)


@pytest.mark.covering(key_dtype=FEW)
@pytest.mark.parametrize("layout", ["wide", "shifted", "strided", "transposed", "expanded"])
def test_strides_of_the_keys_are_honoured(emulated, keys_of, layout):
    """What lies around the keys is NaN."""
    n, d = 70, 136
    around = torch.full((n + 2, 2 * d + 24), float("nan"), dtype=keys_of(1, 1).dtype)
    views = {
        "wide": around[1 : n + 1, 8 : d + 8],
        "shifted": around[1 : n + 1, 1 : d + 1],
        "strided": around[1 : n + 1, 1 : 2 * d : 2],
        "transposed": keys_of(d, n).T,
        "expanded": keys_of(1, d).expand(n, d),
    }
    keys = views[layout]
    if layout in ("wide", "shifted", "strided"):
        keys.copy_(keys_of(n, d))
    moment_sum = start(d)
    expected = reference(moment_sum, keys)
    emulated.second_moment_update_(moment_sum, keys, None)
    assert_sums(moment_sum, expected, keys)


@pytest.mark.covering(key_dtype=FEW)
@pytest.mark.parametrize(("n", "d"), [(0, 8), (5, 0), (0, 0)])
def test_nothing_changes_nothing(emulated, keys_of, n, d):
    moment_sum = torch.randn(d, d)
    before = moment_sum.clone()
    emulated.second_moment_update_(moment_sum, keys_of(n, d), torch.ones(n, dtype=torch.bool))
    assert torch.equal(moment_sum, before)


@pytest.mark.covering(key_dtype=FEW)
@pytest.mark.parametrize("transposed", [False, True])
def test_what_rounds_off_is_kept(emulated, keys_of, transposed):
    d = 40
    target = CanaryBuffer(start(d), transposed)
    lost = CanaryBuffer(start(d) * 2**-26, not transposed)
    expected = target.view.double() + lost.view.double()
    for _ in range(3):
        keys, mask = keys_of(70, d), torch.rand(70) < 0.7
        expected = reference(expected, keys, mask)
        emulated.second_moment_update_(target.view, keys, mask, lost.view)
    target.assert_intact()
    lost.assert_intact()
    value = target.view.double() + lost.view.double()
    assert_sums(value, expected, keys)
    lower = torch.ones(d, d, dtype=torch.bool).tril()
    assert torch.equal(target.view[lower], value[lower].float())


@pytest.mark.covering(key_dtype=FEW)
def test_small_terms_are_kept_exactly(_emulated, key_dtype):
    """Each product is below half an ulp of the sum: plain float32 adds nothing at all."""
    moment_sum, compensation = torch.eye(3), torch.zeros(3, 3)
    keys = torch.full((1, 3), 2.0**-13, dtype=key_dtype)
    for _ in range(30):
        _emulated.second_moment_update_(moment_sum, keys, None, compensation)
    expected = (torch.eye(3, dtype=torch.float64) + 30 * 2.0**-26).tril()
    assert torch.equal((moment_sum.double() + compensation.double()).tril(), expected)


@pytest.mark.covering(key_dtype=FEW)
def test_the_same_bits_in_every_order(_emulated, keys_of):
    moment_sum, keys, mask = torch.randn(264, 264), keys_of(70, 264), torch.rand(70) < 0.7
    results = []
    for seed in (0, 5, 6):
        results.append(moment_sum.clone())
        _emulated.seed(seed)
        _emulated.second_moment_update_(results[-1], keys, mask)
    _emulated.seed(0)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_the_variable_names_the_kernel(_emulated, monkeypatch, dtype):
    """Each rounds in its own way; of half keys both that use tensor cores add 16 rows at a time."""
    keys = torch.randn(300, 64).to(dtype)
    results = {}
    for kernel in ("naive", "mma", "wgmma", ""):
        monkeypatch.setenv("ROME_FAST_CUDA_KERNEL", kernel)
        results[kernel] = torch.zeros(64, 64)
        _emulated.second_moment_update_(results[kernel], keys, None)
    assert not torch.equal(results["naive"], results["mma"])
    assert torch.equal(results["mma"], results["wgmma"]) == (dtype != torch.float32)
    assert torch.equal(results[""], results["wgmma"])
    monkeypatch.setenv("ROME_FAST_CUDA_KERNEL", "fast")
    with pytest.raises(RuntimeError, match="must be wgmma, mma or naive, got fast"):
        _emulated.second_moment_update_(results[""], keys, None)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_half_keys_that_cannot_be_copied_in_boxes_run_by_mma(_emulated, monkeypatch, dtype):
    keys = torch.randn(70, 65).to(dtype)[:, 1:]
    results = []
    for kernel in ("mma", "wgmma"):
        monkeypatch.setenv("ROME_FAST_CUDA_KERNEL", kernel)
        results.append(torch.zeros(64, 64))
        _emulated.second_moment_update_(results[-1], keys, None)
    assert torch.equal(*results) == (dtype != torch.float32)


@pytest.mark.parametrize(
    ("kernel", "least", "most"), [("mma", 1e-5, 2**-10), ("wgmma", 1e-6, 1e-5)]
)
def test_tf32_only_where_it_is_allowed(_emulated, monkeypatch, kernel, least, most):
    monkeypatch.setenv("ROME_FAST_CUDA_KERNEL", kernel)
    keys = torch.randn(200, 40)
    expected = reference(start(40) * 0, keys)
    errors = []
    for allowed in (False, True):
        moment_sum = start(40) * 0
        _emulated.second_moment_update_(moment_sum, keys, None, None, allowed)
        errors.append((moment_sum.double() - expected).tril().nan_to_num().abs().max() / 200)
    assert errors[0] < 1e-6 and least < errors[1] < most
