"""The emulation of CUDA itself: what it computes, and what it does not let pass."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from host_build import ON_HOST_SOURCES, build

KERNELS = Path(__file__).with_name("emulation_kernels.cu")
RUNS = [
    *("sum", "reverse", "some_return", "half_a_warp_waits", "different_barriers"),
    *("waits_for_a_later_block", "writes_behind", "writes_before", "round"),
    *("round_to_tf32", "multiply_tf32"),
]


@pytest.fixture(scope="module")
def library(compiler):
    found = ctypes.CDLL(str(build([*ON_HOST_SOURCES, KERNELS], "emulation")))
    for name in RUNS:
        getattr(found, f"run_{name}").restype = ctypes.c_char_p
    yield found
    found.rome_fast_emulated_seed(ctypes.c_uint64(0))


def at(array):
    return array.ctypes.data_as(ctypes.c_void_p)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_threads_meet_at_barriers_and_in_shuffles(library, seed):
    library.rome_fast_emulated_seed(ctypes.c_uint64(seed))
    x, sums = np.arange(1000, dtype=np.float32), np.zeros(3, dtype=np.float32)
    assert library.run_sum(at(x), len(x), at(sums)) == b""
    assert (sums == x.sum()).all()


def test_a_missing_barrier_shows_in_another_order(library):
    x, y = np.random.rand(256).astype(np.float32), np.zeros(256, dtype=np.float32)
    library.rome_fast_emulated_seed(ctypes.c_uint64(1))
    assert library.run_reverse(at(x), at(y), True) == b"" and (y == x[::-1]).all()
    assert library.run_reverse(at(x), at(y), False) == b""
    assert np.isnan(y).any(), "shared memory is poisoned"


def test_a_barrier_waits_for_no_thread_that_has_returned(library):
    y = np.zeros(64, dtype=np.float32)
    assert library.run_some_return(at(y)) == b""
    assert (y[:40] == 20).all() and (y[40:] == 0).all()


def test_a_warp_of_which_half_comes_waits_for_ever(library):
    assert library.run_half_a_warp_waits() == b"16 of 64 threads of a block wait for ever"


def test_threads_of_a_block_come_to_one_barrier(library):
    said = library.run_different_barriers()
    assert said == b"threads that wait for each other wait for different things"


def test_a_block_that_waits_for_a_later_one_ends_the_launch(library):
    assert library.run_waits_for_a_later_block() == b"1 of 64 threads of a block wait for ever"


def test_a_write_beside_shared_memory_is_found(library):
    assert library.run_writes_behind() == b"a block wrote behind its shared memory"
    assert library.run_writes_before() == b"a block wrote before its shared memory"


def test_half_precision_is_rounded_as_torch_does(library):
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (20_000,), generator=generator, dtype=torch.int64)
    special = torch.tensor([0.0, -0.0, 65504, 65519.99, 65520, 1e-8, 5.9e-8, 6.1e-5, 2049, 2051])
    x = torch.cat([bits.int().view(torch.float32), special, special * 2**-20, special.neg()])
    x = x[~x.isnan()].contiguous()
    bfloat16, half = np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)
    assert library.run_round(at(x.numpy()), len(x), at(bfloat16), at(half)) == b""
    assert np.array_equal(bfloat16, x.bfloat16().float().numpy())
    assert np.array_equal(half, x.half().float().numpy())


def test_tf32_is_rounded_to_nearest_ties_away(library):
    x = (np.random.randn(20_000) * 2.0 ** np.random.randint(-140, 120, 20_000)).astype(np.float32)
    x[:4] = [1 + 2**-11, -1 - 2**-11, 1 + 2**-11 - 2**-23, np.inf]
    rounded = np.zeros_like(x)
    assert library.run_round_to_tf32(at(x), len(x), at(rounded)) == b""
    assert (rounded[:4] == np.float32([1 + 2**-10, -1 - 2**-10, 1, np.inf])).all()
    assert (rounded.view(np.uint32) & 0x1FFF == 0).all()
    place = 2.0 ** (np.maximum(np.frexp(x[4:])[1], -125) - 11)
    expected = np.sign(x[4:]) * np.floor(np.abs(x[4:].astype(float)) / place + 0.5) * place
    assert (rounded[4:] == expected.astype(np.float32)).all()


def test_products_of_tf32_read_19_bits(library):
    """What stands in the other 13 does not count."""
    a, b = (np.random.randint(1, 64, shape).astype(np.float32) for shape in ((16, 8), (8, 8)))
    out, expected = np.ones((16, 8), np.float32), a @ b + 1
    for operand in (a, b):
        operand.view(np.uint32)[:] |= np.random.randint(0, 1 << 13, operand.shape, dtype=np.uint32)
    assert library.run_multiply_tf32(at(a), at(b), at(out)) == b""
    assert (out == expected).all()
