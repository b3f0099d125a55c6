"""Times the ops behind C = E[k k^T] against what torch, and the BLAS inside it, offer.

Every row is checked against a float64 reference before it is timed. A peer's row runs in turns
with the native op; its `times_beside` is how many times longer it takes. Save the results with
    OMP_NUM_THREADS=2 pytest benchmarks/ops/bench_second_moment.py --benchmark-only \
        --save-result second-moment-cpu
"""

import ctypes
import functools
from pathlib import Path

import pytest
import torch

from benchmarks.support.timing import WHY_NOT_NATIVE, random, timed
from rome_fast.ops import cholesky_update_, second_moment_update_
from rome_fast.testing import assert_close

# Every row is the native op or runs beside it.
pytestmark = pytest.mark.skipif(bool(WHY_NOT_NATIVE), reason=f"native: {WHY_NOT_NATIVE}")
N_ROWS = 2048
SIZES = [1024, 3072, 8192]
FACTOR_SIZES = [3072, 6400]
ROUNDS = 9
# name: dtype of the keys, dtype of the sum, compensated
KINDS = {
    "fp32": (torch.float32, torch.float32, False),
    "fp32-compensated": (torch.float32, torch.float32, True),
    "bf16-to-fp32": (torch.bfloat16, torch.float32, False),
    "fp32-to-fp64": (torch.float32, torch.float64, False),
}


@functools.lru_cache(maxsize=1)
def exact_moment(d, key_dtype):
    rows = random(N_ROWS, d, dtype=key_dtype).double()
    return (rows.T @ rows).tril_()


@functools.lru_cache(maxsize=1)
def torch_library():
    """The library that torch's BLAS is linked into, or None."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    return ctypes.CDLL(str(path)) if path.exists() else None


def find_syrk(dtype):
    """syrk out of torch's library (no public interface; its MKL hides the usual name), or None."""
    letter = {torch.float32: "s", torch.float64: "d"}[dtype]
    names = (f"{letter}syrk_", f"mkl_blas_{letter}syrk")
    found = (getattr(torch_library(), name, None) for name in names)
    return next((function for function in found if function is not None), None)


def syrk_(syrk, moment_sum, rows):
    """moment_sum += rows^T rows, lower triangle, through a Fortran syrk; both contiguous."""
    n, d = rows.shape
    # 64-bit integers pass for 32-bit ones too, behind a pointer on a little-endian machine.
    size, depth = ctypes.byref(ctypes.c_int64(d)), ctypes.byref(ctypes.c_int64(n))
    c_type = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}[rows.dtype]
    one = ctypes.byref(c_type(1.0))
    rows_address, sum_address = (ctypes.c_void_p(t.data_ptr()) for t in (rows, moment_sum))
    # Fortran sees both transposed: the lower triangle is its upper one.
    syrk(b"U", b"N", size, depth, one, rows_address, size, one, sum_address, size)


def second_moment_functions(d, kind):
    """The native op and its peers by name, each with the sum that it adds to."""
    key_dtype, sum_dtype, compensated = KINDS[kind]
    keys = random(N_ROWS, d, dtype=key_dtype)
    native_sum, peer_sum = torch.zeros(2, d, d, dtype=sum_dtype)
    compensation = torch.zeros(d, d) if compensated else None
    syrk = find_syrk(sum_dtype)

    def native():
        second_moment_update_(native_sum, keys, compensation=compensation, backend="native")

    def peer_addmm():
        rows = keys.to(sum_dtype)
        peer_sum.addmm_(rows.T, rows)

    def peer_mkl_syrk():
        syrk_(syrk, peer_sum, keys.to(sum_dtype))

    functions = {"native": (native, native_sum), "peer_addmm": (peer_addmm, peer_sum)}
    if syrk is not None:
        functions["peer_mkl_syrk"] = (peer_mkl_syrk, peer_sum)
    return functions


@pytest.mark.parametrize("impl", ["native", "peer_addmm", "peer_mkl_syrk"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", SIZES)
def test_second_moment_update(benchmark, d, kind, impl):
    functions = second_moment_functions(d, kind)
    if impl not in functions:
        pytest.skip("torch's library exports no syrk here")
    key_dtype, sum_dtype, _ = KINDS[kind]
    function, result = functions[impl]
    function()
    assert_close(result.tril(), exact_moment(d, key_dtype), sum_dtype)
    beside = None if impl == "native" else functions["native"][0]
    # The same work for all: n * d * (d + 1) flops in the lower triangle.
    gflop = N_ROWS * d * (d + 1) / 1e9
    info = dict(impl=impl, kind=kind, n=N_ROWS, d=d)
    # bfloat16 keys may be multiplied as they are; float32 keys in float64 may not.
    products = {sum_dtype} | ({key_dtype} if key_dtype == torch.bfloat16 else set())
    gemm = [(d, N_ROWS, d, dtype) for dtype in products]
    timed(benchmark, function, rounds=ROUNDS, beside=beside, gflop=gflop, gemm=gemm, **info)


@functools.lru_cache(maxsize=1)
def updated_moment(d):
    """C, x, C + x x^T and its Cholesky factor, float64."""
    samples = random(2 * d, d, dtype=torch.float64)
    moment, x = samples.T @ samples / len(samples), random(d, dtype=torch.float64, seed=1)
    updated = torch.addr(moment, x, x)
    return moment, x, updated, torch.linalg.cholesky(updated)


@pytest.mark.parametrize("impl", ["native_column_major", "native_row_major", "peer_cholesky"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", FACTOR_SIZES)
def test_cholesky_update(benchmark, d, dtype, impl):
    moment, x, updated, exact = updated_moment(d)
    factor = torch.linalg.cholesky(moment).to(dtype)  # column-major
    if impl == "native_row_major":
        factor = factor.contiguous()
    updated = updated.to(dtype)

    def native():
        cholesky_update_(factor, x, backend="native")

    if impl == "peer_cholesky":
        function, beside = lambda: torch.linalg.cholesky(updated), native
        assert_close(function(), exact, dtype)
    else:
        function, beside = native, None
        native()
        assert_close(factor.tril(), exact, dtype)
    # The triangle is read by the solve, read again and written.
    gigabytes = 3 * d * (d + 1) / 2 * dtype.itemsize / 1e9
    info = dict(impl=impl, d=d, dtype=str(dtype))
    timed(benchmark, function, rounds=ROUNDS, beside=beside, gigabytes=gigabytes, **info)
