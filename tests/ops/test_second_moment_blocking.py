"""second_moment_update_ in the blocks of other caches, and with dot products of bfloat16 pairs."""

import subprocess
import sys

import pytest

from rome_fast.testing import TOLERANCES

# Prints the simd variant, a checksum of the bits of one float32 sum, and the largest error of each
# case relative to the largest element. Some shapes have more rows than a slab of any caches here.
CODE = """
import itertools, torch, zlib
from rome_fast.ops import _native, second_moment_update_
from rome_fast.testing import CanaryBuffer
torch.set_num_threads(2)
g = torch.Generator().manual_seed(0)

def update(n, d, keys_of, sum_dtype, compensated=False, masked=False, strided=False):
    keys = (torch.randn(n, d, generator=g) + 0.25).to(keys_of)
    moment = torch.randn(d, d, generator=g).to(sum_dtype)
    lost = torch.zeros(d, d) if compensated else None
    mask = torch.rand(n, generator=g) < 0.7 if masked else None
    rows = keys.double()[mask] if masked else keys.double()
    exact = moment.double() + (rows.T @ rows).tril()
    target = CanaryBuffer(moment) if strided else None
    if strided:
        moment, keys = target.view, CanaryBuffer(keys, True).view
    second_moment_update_(moment, keys, mask, compensation=lost, backend="native")
    if strided:
        target.assert_intact()
    value = moment.double() if lost is None else moment.double() + lost.double()
    return moment, ((value - exact).abs().max() / exact.abs().max()).item()

print(_native.load().build_facts["simd"])
moment, _ = update(3001, 211, torch.float32, torch.float32)
print(zlib.crc32(moment.numpy().tobytes()))
SHAPES = [(1, 1), (2, 49), (63, 48), (129, 97), (1301, 193), (3001, 211)]
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32),
          (torch.float16, torch.float32), (torch.float32, torch.float64)]
for (n, d), (keys_of, sum_dtype) in itertools.product(SHAPES, DTYPES):
    kinds = [{}, dict(masked=True), dict(strided=True, masked=True)]
    if sum_dtype == torch.float32:
        kinds.append(dict(compensated=True))
    for kind in kinds:
        print(str(sum_dtype), update(n, d, keys_of, sum_dtype, **kind)[1])
"""
CACHES = ["8,64", "32,256", "32,1024", "48,2048"]


@pytest.fixture
def run(native_library, monkeypatch):
    def run(code, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def assert_all_close(lines):
    for line in lines:
        dtype, error = line.split()
        tolerance = {str(d): t for d, t in TOLERANCES.items()}[dtype]
        assert float(error) < tolerance, line
    assert len(lines) == 6 * (3 * 4 + 3)


def test_blocks_of_small_and_of_large_caches_are_right_and_not_the_same(run):
    _, small, *errors = run(CODE, ROME_FAST_CACHES="8,64")
    assert_all_close(errors)
    _, large, *errors = run(CODE, ROME_FAST_CACHES="48,2048")
    assert_all_close(errors)
    assert small != large  # slabs of another depth, so sums in another order


@pytest.mark.exhaustive
@pytest.mark.parametrize("simd", ["baseline", "avx2", "avx512", "avx512_bf16"])
@pytest.mark.parametrize("caches", CACHES)
def test_every_variant_is_right_in_all_blocks(run, caches, simd):
    _, _, *errors = run(CODE, ROME_FAST_CACHES=caches, ROME_FAST_SIMD=simd)
    assert_all_close(errors)


@pytest.mark.parametrize("caches", ["0,0", "9999999,9999999", "none"])
def test_caches_that_cannot_be_are_not_believed(run, caches):
    _, _, *errors = run(CODE, ROME_FAST_CACHES=caches)
    assert_all_close(errors)


PAIRS = """
import torch
from rome_fast.ops import _native, second_moment_update_
print(_native.load().build_facts["simd"])
for seed in range(4):
    g = torch.Generator().manual_seed(seed)
    keys = (torch.randn(1999, 150, generator=g) * torch.logspace(-3, 2, 150)).bfloat16()
    moment = torch.zeros(150, 150)
    second_moment_update_(moment, keys, backend="native")
    exact = (keys.double().T @ keys.double()).tril()
    print(((moment.double() - exact).norm() / exact.norm()).item())
"""


def test_pairs_of_bfloat16_are_summed_as_exactly_as_widened_keys(run):
    simd, *paired = run(PAIRS, ROME_FAST_SIMD="avx512_bf16")
    if simd != "avx512_bf16":
        pytest.skip("this CPU has no dot products of bfloat16 pairs")
    _, *widened = run(PAIRS, ROME_FAST_SIMD="avx512")
    assert paired != widened
    assert sum(map(float, paired)) < 2 * sum(map(float, widened))
