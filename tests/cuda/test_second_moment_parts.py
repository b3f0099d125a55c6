"""The order of the second moment's tiles, and what the emulation of wgmma makes of its operands."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from host_build import ON_HOST_SOURCES, build

PARTS = Path(__file__).with_name("second_moment_parts.cu")
IMAGE_BYTES = 128 << 10


@pytest.fixture(scope="module")
def parts(compiler):
    library = ctypes.CDLL(str(build([*ON_HOST_SOURCES, PARTS], "second_moment_parts")))
    library.multiply.restype = ctypes.c_char_p
    return library


def at(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def tiles(parts, d, tile_rows, heights):
    positions = np.full((600_000, 2), -1, dtype=np.int32)
    size = parts.list_tiles(ctypes.c_int64(d), tile_rows, heights, at(positions))
    return positions[:size]


@pytest.mark.parametrize("heights", [1, 2])
@pytest.mark.parametrize("d", [1, 127, 128, 129, 256, 257, 1024, 2049, 2100, 4352, 6400, 14336])
def test_every_tile_of_the_triangle_comes_once(parts, d, heights):
    rows, cols = -(-d // 128), -(-d // (128 * heights))
    expected = {(r, c) for r in range(rows) for c in range(cols) if c * heights <= r}
    found = [tuple(tile) for tile in tiles(parts, d, 128, heights).tolist()]
    assert len(found) == len(expected) and set(found) == expected


def test_a_large_triangle_is_numbered_exactly(parts):
    found = tiles(parts, 65536, 128, 1)
    assert len(found) == 512 * 513 // 2 == len(np.unique(found, axis=0))
    assert (found[:, 1] <= found[:, 0]).all() and found.min() == 0 and found.max() == 511


def test_tiles_that_run_together_share_their_columns(parts):
    """132 tiles of 128 x 256 read far fewer columns of keys than the whole width."""
    found = tiles(parts, 14336, 128, 2)[1000:1132]
    read = {128 * r + 64 * i for r in found[:, 0].tolist() for i in range(2)}
    read |= {256 * c + 64 * i for c in found[:, 1].tolist() for i in range(4)}
    assert 64 * len(read) < 5000


def canonical(mn, k, leading, stride):
    """The byte of element (mn, k) of 2 bytes, from CUTLASS's canonical MN-major layout.

    Swizzle<3,4,3> o ((T,8,m),(8,k)):((1,T,LBO),(8T,SBO)), with T = 8 elements of 16 bytes.
    """

    def crd(index, shape):
        for size in shape:
            yield index % size
            index //= size

    t = 8
    parts_mn = zip(crd(mn, (t, 8, 1 << 20)), (1, t, leading // 2), strict=True)
    parts_k = zip(crd(k, (8, 1 << 20)), (8 * t, stride // 2), strict=True)
    byte = 2 * sum(i * step for i, step in (*parts_mn, *parts_k))
    bits, base, shift = 3, 4, 3
    mask = ((1 << bits) - 1) << (base + shift)
    return byte ^ ((byte & mask) >> shift)


def descriptor(start, leading, stride):
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | 1 << 62


def run(parts, a, b, out, accumulate, fenced=True, waits=True):
    """out += a b through an image of shared memory; a [64, 16], b [16, 256]."""
    image = np.full(IMAGE_BYTES, 0xFF, dtype=np.uint8)
    # Not how the kernel has them: other offsets, and the operands' groups interleaved.
    layout_a, layout_b = (0, 1024, 4096), (65536, 16384, 2048)
    for (start, leading, stride), operand in ((layout_a, a), (layout_b, b.T)):
        bits = operand.contiguous().view(torch.int16).numpy().astype(np.uint16)
        for mn in range(bits.shape[0]):
            for k in range(16):
                byte = start + canonical(mn, k, leading, stride)
                image[byte : byte + 2] = np.frombuffer(bits[mn, k].tobytes(), np.uint8)
    described = (ctypes.c_uint64(descriptor(*layout)) for layout in (layout_a, layout_b))
    return parts.multiply(at(image), *described, accumulate, fenced, waits, at(out))


def operands():
    return torch.randn(64, 16).bfloat16(), torch.randn(16, 256).bfloat16()


@pytest.mark.parametrize("accumulate", [False, True])
def test_operands_are_read_where_the_canonical_layout_has_them(parts, accumulate):
    a, b = operands()
    out = np.random.randn(64, 256).astype(np.float32)
    expected = (a.double() @ b.double()).numpy() + (out if accumulate else 0)
    assert run(parts, a, b, out, accumulate) == b""
    assert np.abs(out - expected).max() < 1e-5


def test_products_are_not_there_before_the_wait(parts):
    out = np.zeros((64, 256), dtype=np.float32)
    assert run(parts, *operands(), out, True, waits=False) == b""
    assert np.isnan(out).all()


def test_products_need_a_fence(parts):
    out = np.zeros((64, 256), dtype=np.float32)
    assert run(parts, *operands(), out, True, fenced=False) == b"wgmma without a fence"


def product(parts, a_row, b_column, start):
    """What the tensor cores make of start + a_row b_column."""
    a, b = torch.zeros(64, 16), torch.zeros(16, 256)
    a[0, : len(a_row)], b[: len(b_column), 0] = torch.tensor(a_row), torch.tensor(b_column)
    out = np.full((64, 256), start, dtype=np.float32)
    assert run(parts, a.bfloat16(), b.bfloat16(), out, True) == b""
    return float(out[0, 0])


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_are_cut_off_towards_zero(parts, sign):
    assert product(parts, [2.0**-12], [sign * 1.75 * 2.0**-12], sign) == sign
    assert product(parts, [1.75 * 2.0**-12], [sign * 2.0**-11], sign) == sign * (1 + 2.0**-23)
    assert product(parts, [2.0**-13], [-sign * 2.0**-12], sign) == sign * (1 - 2.0**-24)


def test_products_far_below_the_sum_are_lost_one_by_one(parts):
    """16 of 2**-25 are seen, 16 of 2**-26 are not, though they make up two places of the sum."""
    for exponent, expected in ((-25, 1 + 2.0**-21), (-26, 1.0)):
        assert product(parts, [2.0**exponent] * 16, [1.0] * 16, 1.0) == expected


def test_numbers_too_small_to_be_normal_count(parts):
    least = 2.0**-133  # of bfloat16
    assert product(parts, [least], [1.0], 0.0) == least
    assert product(parts, [least], [2.0**-16], 0.0) == 2.0**-149
    assert product(parts, [least], [2.0**-17], 0.0) == 0
    assert product(parts, [1.0], [least], 2.0**-149) == least + 2.0**-149


def test_sums_beyond_the_largest_float_are_infinite(parts):
    assert product(parts, [2.0**100], [-(2.0**28)], 0.0) == -np.inf
    assert product(parts, [np.inf], [1.0], 0.0) == np.inf
    assert np.isnan(product(parts, [np.inf], [0.0], 0.0))
