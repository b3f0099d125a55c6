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
