"""The choice of backend, and what importing the package must never do."""

import os
import subprocess
import sys

import pytest
import torch

from rome_fast import ops
from rome_fast.errors import BackendUnavailableError, InvalidArgumentError
from rome_fast.ops import _native

# Hides the built library from the subprocess that runs it.
HIDE_LIBRARY = "from rome_fast.ops import _native; _native.find_library = lambda *_: None\n"

UPDATE = """
import torch
from rome_fast import ops
weight = torch.zeros(3, 4)
ops.rank_one_update_(weight, torch.ones(4), torch.ones(3), weight_layout="out_in")
assert torch.equal(weight, torch.ones(3, 4))
print(ops.resolve_backend())
"""


def run_python(code, **environment):
    """Run code in a fresh interpreter; returns the completed process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ROME_FAST_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def output_of(code, **environment):
    process = run_python(code, **environment)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@pytest.mark.exhaustive
def test_auto_is_native_where_the_library_is_built(native_library):
    assert output_of(UPDATE) == "native"


@pytest.mark.exhaustive
def test_everything_works_without_the_library():
    assert output_of(HIDE_LIBRARY + UPDATE) == "torch"


@pytest.mark.exhaustive
def test_environment_chooses_the_default_backend(native_library):
    assert output_of(UPDATE, ROME_FAST_BACKEND="torch") == "torch"
    assert output_of(UPDATE, ROME_FAST_BACKEND="native") == "native"


@pytest.mark.exhaustive
def test_environment_native_raises_with_the_reason_when_the_library_is_missing():
    process = run_python(HIDE_LIBRARY + UPDATE, ROME_FAST_BACKEND="native")
    assert process.returncode != 0
    assert "BackendUnavailableError: ROME_FAST_BACKEND='native' is not available" in process.stderr
    assert "the native library is not built" in process.stderr


@pytest.mark.exhaustive
def test_an_old_torch_is_refused_before_the_library_is_opened(native_library):
    code = """
import torch
torch.__version__ = "2.9.1"
opened = []
torch.ops.load_library = opened.append
from rome_fast.ops import _native
status = _native.load()
assert not status.loaded and opened == [], (status, opened)
print(status.reason)
"""
    assert output_of(code) == "torch 2.9.1 is installed, the native library needs >= 2.10"


@pytest.mark.exhaustive
def test_a_library_that_cannot_be_opened_is_reported(tmp_path):
    broken = tmp_path / "_C.abi3.so"
    broken.write_bytes(b"not a library")
    code = f"""
from pathlib import Path
from rome_fast import ops
from rome_fast.ops import _native
_native.find_library = lambda *_: Path({str(broken)!r})
assert ops.resolve_backend() == "torch"
print(_native.load().reason)
"""
    assert output_of(code).startswith("_C.abi3.so cannot be loaded: ")


@pytest.mark.exhaustive
def test_the_cuda_library_is_not_opened_without_a_cuda_torch(tmp_path):
    library = tmp_path / "_C_cuda.abi3.so"
    library.write_bytes(b"not a library")
    code = f"""
from pathlib import Path
import torch
torch.version.cuda = None
from rome_fast import ops
from rome_fast.ops import _native
_native.find_library = lambda *_: Path({str(library)!r})
assert ops.resolve_backend("auto", "cuda") == "torch"
print(_native.load("cuda").reason)
torch.version.cuda = "13.0"
_native.load.cache_clear()
print(_native.load("cuda").reason)
torch.cuda.device_count = lambda: 1
_native.load.cache_clear()
print(_native.load("cuda").reason)
assert not torch.cuda.is_initialized()
"""
    without, no_card, broken = output_of(code).splitlines()
    assert no_card == "torch finds no GPU here"
    assert without == f"torch {torch.__version__} is built without CUDA"
    assert broken.startswith("_C_cuda.abi3.so cannot be loaded: ")


@pytest.mark.exhaustive
def test_a_missing_cuda_library_is_told_with_the_remedy():
    code = HIDE_LIBRARY + "from rome_fast import ops; ops.resolve_backend('native', 'cuda')"
    process = run_python(code)
    assert "backend='native' is not available: the CUDA library is not built" in process.stderr
    assert "ROME_FAST_BUILD=cuda pip install" in process.stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize("simd", ["baseline", "avx2", "avx512", "avx512_bf16"])
def test_every_simd_variant_gives_the_same_answers(native_library, simd):
    """Variants above what this CPU has fall back to its best one."""
    code = """
import torch
from rome_fast import ops
g = torch.Generator().manual_seed(0)
for d in (1, 47, 100, 300):
    keys = torch.randn(600, d, generator=g)
    moment = torch.zeros(d, d, dtype=torch.float64)
    ops.second_moment_update_(moment, keys, backend="native")
    exact = keys.double().T @ keys.double()
    assert (moment - exact.tril()).abs().max() <= 1e-10 * exact.abs().max()
    single, lost = torch.zeros(2, d, d)
    ops.second_moment_update_(single, keys, backend="native")
    assert (single - exact.tril()).abs().max() <= 1e-5 * exact.abs().max()
    ops.second_moment_update_(single, keys, compensation=lost, backend="native")
    assert (single - 2 * exact.tril()).abs().max() <= 1e-5 * exact.abs().max()
    assert d == 1 or lost.any()  # one sum alone may be exact
    exact = exact + 600 * torch.eye(d, dtype=torch.float64)
    for factor in (torch.linalg.cholesky(exact), torch.linalg.cholesky(exact).contiguous()):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            weight = torch.randn(5, d, generator=g).to(dtype)
            key = torch.randn(d, generator=g, dtype=torch.float64)
            replay = weight.clone()
            u, v, *_ = ops.rank_one_solve_apply_(
                weight, factor, key, key, torch.ones(5), weight_layout="out_in",
                min_denominator=0.1, backend="native")
            w = torch.linalg.solve(exact, key)
            assert (u - w / w.norm()).abs().max() < 1e-6
            ops.rank_one_update_(replay, u, v, weight_layout="out_in", backend="torch")
            assert torch.equal(weight, replay)
        x = torch.randn(d, generator=g, dtype=torch.float64)
        updated = torch.linalg.cholesky(exact + torch.outer(x, x))
        ops.cholesky_update_(factor, x, backend="native")
        assert (factor - updated).abs().max() <= 1e-11 * updated.abs().max()
    for dtype, eps in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        logits = 5 * torch.randn(4, 30 * d, generator=g, dtype=torch.float64)
        init = torch.randn(1, 30 * d, generator=g, dtype=torch.float64).log_softmax(-1)
        init = init.to(dtype if dtype == torch.float64 else torch.float32)
        given = logits.to(dtype), torch.tensor([0, d, 30 * d - 1]), torch.zeros(3).long(), init
        found = ops.value_loss(*given, kl_factor=0.5, backend="native")
        wide = given[0].double(), *given[1:3], init.double()
        oracle = ops.value_loss(*wide, kl_factor=0.5, backend="torch")
        torch.testing.assert_close(found[0].double(), oracle[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(found[1].double(), oracle[1], rtol=eps, atol=eps)
print(ops._native.load().build_facts["simd"])
"""
    used = output_of(code, ROME_FAST_SIMD=simd)
    best = output_of("from rome_fast.ops import _native; print(_native.load().build_facts['simd'])")
    order = ["baseline", "avx2", "avx512", "avx512_bf16"]
    assert used == (simd if order.index(simd) <= order.index(best) else best)


def test_import_neither_compiles_nor_starts_cuda_nor_imports_transformers():
    code = """
import subprocess, sys
def refuse(*args, **kwargs):
    raise AssertionError(f"a process was started: {args}")
subprocess.Popen.__init__ = refuse
import rome_fast, rome_fast.ops, rome_fast.info
import torch
assert not torch.cuda.is_initialized()
assert "transformers" not in sys.modules
assert "torch.utils.cpp_extension" not in sys.modules
assert "torch._dynamo" not in sys.modules, "it takes two seconds"
from rome_fast.ops import _native
assert _native.load.cache_info().currsize == 0, "the library was loaded by an import"
print("lean")
"""
    assert output_of(code) == "lean"


def test_unknown_backend_is_refused_by_name(monkeypatch):
    with pytest.raises(InvalidArgumentError, match="backend must be one of"):
        ops.resolve_backend("cuda")
    monkeypatch.setenv("ROME_FAST_BACKEND", "fast")
    with pytest.raises(InvalidArgumentError, match="ROME_FAST_BACKEND must be one of"):
        ops.resolve_backend()


def test_native_on_another_device_is_refused_with_the_reason():
    with pytest.raises(BackendUnavailableError, match="no native kernel for meta tensors"):
        ops.resolve_backend("native", "meta")
    assert ops.resolve_backend("auto", "meta") == "torch"


def test_torch_backend_does_not_reach_the_native_kernel(monkeypatch):
    def refuse(*args):
        raise AssertionError("the dispatcher was called")

    monkeypatch.setattr(ops, "_call_native", refuse)
    weight = torch.zeros(2, 2)
    options = dict(weight_layout="out_in")
    ops.rank_one_update_(weight, torch.ones(2), torch.ones(2), **options, backend="torch")
    assert torch.equal(weight, torch.ones(2, 2))
    if _native.load().loaded:
        with pytest.raises(AssertionError, match="the dispatcher was called"):
            ops.rank_one_update_(weight, torch.ones(2), torch.ones(2), **options, backend="native")
