"""second_moment_update_ against a float64 reference, through strides, masks and torch.compile."""

import itertools
import subprocess
import sys

import pytest
import torch

from rome_fast.errors import InvalidArgumentError
from rome_fast.ops import second_moment_update_
from rome_fast.testing import CanaryBuffer, assert_close

KEY_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SUM_DTYPES = [torch.float32, torch.float64]


def sample(n, d, key_dtype=torch.float32, sum_dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    moment_sum = torch.randn(d, d, generator=generator, dtype=torch.float64).to(sum_dtype)
    keys = torch.randn(n, d, generator=generator).to(key_dtype)
    mask = torch.rand(n, generator=generator) < 0.7
    return moment_sum, keys, mask


def reference(moment_sum, keys, mask=None):
    rows = keys.double() if mask is None else keys.double()[mask]
    return moment_sum.double() + (rows.T @ rows).tril()


@pytest.mark.covering("key_dtype,sum_dtype,backend", "n,d")
@pytest.mark.parametrize(
    ("key_dtype", "sum_dtype"),
    [*itertools.product(KEY_DTYPES, SUM_DTYPES), (torch.float64, torch.float64)],
)
# Sizes around the tiles: 48 and 24 columns a panel, 512 and 256 rows a slab.
@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 5), (513, 48), (257, 49), (1030, 101), (64, 193)])
def test_second_moment_matches_reference(backend, key_dtype, sum_dtype, n, d):
    moment_sum, keys, mask = sample(n, d, key_dtype, sum_dtype)
    expected = reference(moment_sum, keys, mask)
    second_moment_update_(moment_sum, keys, mask, backend=backend)
    assert_close(moment_sum, expected)


def test_second_moment_of_more_rows_than_are_packed_at_a_time(backend):
    moment_sum, keys, mask = sample(400_000, 2, sum_dtype=torch.float64)
    expected = reference(moment_sum, keys, mask)
    second_moment_update_(moment_sum, keys, mask, backend=backend)
    assert_close(moment_sum, expected)


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of Linux")
@pytest.mark.parametrize(("n", "d", "largest_mib"), [(60_000, 512, 24), (64, 4096, 8)])
def test_second_moment_copies_neither_the_keys_nor_the_sum(native_library, n, d, largest_mib):
    """Packed keys take at most 16 MiB; keys in float32 would take 117, a d x d matrix 64."""
    code = f"""
import resource, torch
from rome_fast.ops import second_moment_update_
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
torch.set_num_threads(2)
keys, moment_sum = torch.ones({n}, {d}, dtype=torch.bfloat16), torch.ones({d}, {d})
compensation = torch.full_like(moment_sum, 0.0)
second_moment_update_(moment_sum[:9, :9], keys[:, :9], backend="native")
before = peak()
second_moment_update_(moment_sum, keys, compensation=compensation, backend="native")
print(peak() - before)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) < largest_mib


def test_second_moment_without_mask(backend):
    moment_sum, keys, _ = sample(300, 70)
    expected = reference(moment_sum, keys)
    second_moment_update_(moment_sum, keys, backend=backend)
    assert_close(moment_sum, expected)


@pytest.mark.parametrize("key_dtype", KEY_DTYPES, ids=str)
def test_second_moment_is_no_different_on_the_cpu_if_tf32_is_allowed(backend, key_dtype):
    moment_sum, keys, mask = sample(300, 70, key_dtype)
    allowed = moment_sum.clone()
    second_moment_update_(moment_sum, keys, mask, backend=backend)
    second_moment_update_(allowed, keys, mask, allow_tf32=True, backend=backend)
    assert torch.equal(moment_sum, allowed)


def test_second_moment_leaves_the_upper_triangle_alone(backend):
    moment_sum, keys, mask = sample(100, 61)
    upper = torch.ones(61, 61, dtype=torch.bool).triu(1)
    moment_sum[upper] = float("nan")
    second_moment_update_(moment_sum, keys, mask, backend=backend)
    assert moment_sum[upper].isnan().all()
    assert moment_sum[~upper].isfinite().all()


@pytest.mark.covering
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sum_dtype", SUM_DTYPES)
def test_second_moment_honours_strides(backend, sum_dtype, transposed):
    moment_sum, keys, mask = sample(130, 101, sum_dtype=sum_dtype)
    # A symmetric start would hide a transposed write.
    expected = reference(moment_sum, keys, mask)
    target = CanaryBuffer(moment_sum, transposed)
    strided_keys = CanaryBuffer(keys, transposed).view
    strided_mask = mask.repeat_interleave(2)[::2]
    second_moment_update_(target.view, strided_keys, strided_mask, backend=backend)
    target.assert_intact()
    assert_close(target.view, expected)


def test_second_moment_of_a_contiguous_transposed_moment(backend):
    moment_sum, keys, mask = sample(130, 101)
    expected = reference(moment_sum, keys, mask)
    moment_sum = moment_sum.T.contiguous().T
    second_moment_update_(moment_sum, keys, mask, backend=backend)
    assert_close(moment_sum, expected)


@pytest.mark.covering
@pytest.mark.parametrize(("n", "d"), [(0, 8), (5, 0), (0, 0)])
def test_second_moment_of_nothing_changes_nothing(backend, n, d):
    moment_sum, keys, mask = sample(n, d)
    before = moment_sum.clone()
    second_moment_update_(moment_sum, keys, mask, backend=backend)
    assert torch.equal(moment_sum, before)


def test_second_moment_of_masked_rows_ignores_what_is_in_them(backend):
    moment_sum, keys, mask = sample(50, 20)
    expected = reference(moment_sum, keys, mask)
    keys[~mask] = float("nan")
    second_moment_update_(moment_sum, keys, mask, backend=backend)
    assert_close(moment_sum, expected)


def test_second_moment_is_deterministic(backend):
    moment_sum, keys, mask = sample(700, 150)
    again = moment_sum.clone()
    second_moment_update_(moment_sum, keys, mask, backend=backend)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if backend == "native" else threads)
        second_moment_update_(again, keys, mask, backend=backend)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(moment_sum, again)


@pytest.mark.covering
@pytest.mark.parametrize("sum_dtype", SUM_DTYPES)
@pytest.mark.parametrize("with_mask", [False, True])
def test_second_moment_opcheck(sum_dtype, with_mask):
    # The native kernel when it is loaded, else the default: both sit behind the same schema.
    moment_sum, keys, mask = sample(20, 9, sum_dtype=sum_dtype)
    op = torch.ops.rome_fast.second_moment_update_.default
    torch.library.opcheck(op, (moment_sum, keys, mask if with_mask else None))
    torch.library.opcheck(op, (CanaryBuffer(moment_sum).view, keys.T.contiguous().T, None))
    if sum_dtype == torch.float32:
        compensation = torch.zeros_like(moment_sum)
        torch.library.opcheck(op, (moment_sum, keys, mask if with_mask else None, compensation))
        torch.library.opcheck(op, (moment_sum, keys, None, compensation, True))


@pytest.mark.covering
@pytest.mark.parametrize("dynamic", [False, True])
def test_second_moment_compiles_fullgraph(backend, dynamic):
    moment_sum, keys, mask = sample(40, 30)
    expected = reference(moment_sum, keys, mask)

    def step(moment_sum, keys, mask):
        second_moment_update_(moment_sum, keys, mask, backend=backend)
        return moment_sum.diagonal().sum()

    # aot_eager: the whole of tracing and functionalisation, without compiling C++.
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    trace = compiled(moment_sum, keys, mask)
    assert_close(moment_sum, expected)
    assert_close(trace, expected.diagonal().sum())


def test_second_moment_bumps_the_versions(backend):
    moment_sum, keys, mask = sample(10, 4)
    compensation = torch.zeros_like(moment_sum)
    before = moment_sum._version, compensation._version
    second_moment_update_(moment_sum, keys, mask, compensation=compensation, backend=backend)
    assert moment_sum._version > before[0]
    assert compensation._version > before[1]


@pytest.mark.covering
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(moment_sum=torch.zeros(4, 5)), r"moment_sum must have shape \[4, 4\]"),
        (dict(moment_sum=torch.zeros(4, 4, dtype=torch.float16)), "moment_sum must be one of"),
        (dict(moment_sum=torch.zeros(4, 1).expand(4, 4)), "moment_sum is expanded"),
        (dict(keys=torch.zeros(3, 4, dtype=torch.int64)), "keys must be one of"),
        (dict(keys=torch.zeros(4)), "keys must have 2 dimensions"),
        (dict(keys=torch.zeros(3, 4, dtype=torch.float64)), "must be float64 for float64 keys"),
        (dict(mask=torch.ones(2, dtype=torch.bool)), r"mask must have shape \[3\]"),
        (dict(mask=torch.ones(3)), "mask must be one of bool"),
        (dict(keys=torch.zeros(3, 4, device="meta")), "keys is on meta but moment_sum is on cpu"),
        (dict(compensation=torch.zeros(4, 5)), r"compensation must have shape \[4, 4\]"),
        (
            dict(compensation=torch.zeros(4, 4, dtype=torch.float64)),
            "compensation must be one of float32",
        ),
        (
            dict(moment_sum=torch.zeros(4, 4, dtype=torch.float64), compensation=torch.zeros(4, 4)),
            "compensation needs a float32 moment_sum, got float64",
        ),
        (dict(compensation=torch.zeros(4, 1).expand(4, 4)), "compensation is expanded"),
        (
            dict(compensation=torch.zeros(4, 4, device="meta")),
            "compensation is on meta but moment_sum is on cpu",
        ),
    ],
)
def test_second_moment_refuses_by_name(backend, change, message):
    arguments = dict(moment_sum=torch.zeros(4, 4), keys=torch.zeros(3, 4), mask=None)
    with pytest.raises(InvalidArgumentError, match=message):
        second_moment_update_(**(arguments | change), backend=backend)
