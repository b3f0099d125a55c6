"""What tools/cuda_check.py makes of the compiler's report, where it fails and where it does not."""

import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import cuda_check  # noqa: E402
import torch_headers  # noqa: E402

SAID = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN9rome_fast10sum_kernelIfEEvPT_' for 'sm_80'
ptxas info    : Function properties for _ZN9rome_fast10sum_kernelIfEEvPT_
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 372 bytes cmem[0]
ptxas info    : Compile time = 5.0 ms
ptxas info    : Compiling entry function '_Z16sum_naive_kernelPf' for 'sm_90a'
ptxas info    : Function properties for _Z16sum_naive_kernelPf
    64 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 64 bytes cumulative stack size
"""


def said(stack=0, stores=0, loads=0):
    return SAID.format(stack=stack, stores=stores, loads=loads)


def test_the_report_is_read_kernel_by_kernel():
    first, second = cuda_check.kernels_of(said())
    assert first == cuda_check.Kernel("sum_kernel<float>", "sm_80", 40, 0, 0)
    assert second == cuda_check.Kernel("sum_naive_kernel", "sm_90a", 255, 64, 8)


@pytest.mark.parametrize("what", [{"stack": 16}, {"stores": 8}, {"loads": 8}])
def test_spills_and_local_memory_are_problems_but_in_naive_kernels(what):
    first, naive = cuda_check.kernels_of(said(**what))
    assert first.problem.startswith("sum_kernel<float> on sm_80: ")
    assert naive.problem == ""
    assert not any(kernel.problem for kernel in cuda_check.kernels_of(said()))


def test_serialised_tensor_cores_are_a_problem():
    line = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are"
    assert cuda_check.warnings_of(f"{said()}{line} serialized\n") == [f"{line} serialized"]
    assert cuda_check.warnings_of(said()) == []


def kernels(*names):
    return [cuda_check.Kernel(name, arch, 1, 0, 0) for name, arch in names]


ALL = kernels(("a_wgmma_kernel", "sm_90a"), ("a_mma_kernel", "sm_80"), ("a_mma_kernel", "sm_90a"))
CODE = {"a_wgmma_kernel": "HGMMA.64x64x16.F32", "a_mma_kernel": "HMMA.16816.F32"}


def problems_with(monkeypatch, code, found=ALL):
    monkeypatch.setattr(cuda_check, "disassembler", lambda: (lambda *_: code, "SASS"))
    return cuda_check.tensor_core_problems([], found)


def test_kernels_for_tensor_cores_must_use_them(monkeypatch):
    assert problems_with(monkeypatch, CODE) == []
    without = CODE | {"a_wgmma_kernel": "FFMA"}
    assert problems_with(monkeypatch, without) == ["a_wgmma_kernel on sm_90a holds no HGMMA"]
    assert problems_with(monkeypatch, {}) == [
        "a_wgmma_kernel on sm_90a holds no HGMMA",
        "a_mma_kernel on sm_80 holds no HMMA",
        "a_mma_kernel on sm_90a holds no HMMA",
    ]


def test_a_missing_kernel_for_tensor_cores_is_a_problem(monkeypatch):
    assert problems_with(monkeypatch, CODE, ALL[1:]) == [
        "there is no kernel named wgmma for sm_90a"
    ]


def test_without_nvcc_it_says_so_and_succeeds(monkeypatch, capsys):
    monkeypatch.setattr(cuda_check.nvcc_build, "find_nvcc", lambda: None)
    assert cuda_check.main() == 0
    assert "no nvcc here" in capsys.readouterr().out


def test_a_problem_is_printed_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(cuda_check.nvcc_build, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(cuda_check, "tensor_core_problems", lambda *_: [])
    monkeypatch.setattr(cuda_check, "old_torch_problems", lambda _: [])
    for text, status in ((said(), 0), (said(stores=8), 1), ("", 1)):
        monkeypatch.setattr(cuda_check, "compiled", lambda _, text=text: (text, [], 0.0))
        assert cuda_check.main() == status
    assert "sum_kernel<float> on sm_80: 8 bytes spilled" in capsys.readouterr().err


@pytest.fixture
def old_torch(monkeypatch, tmp_path):
    """Calls old_torch_problems with headers, and a compiler, that do as they are told."""

    def problems(headers=lambda _: tmp_path, compiles=lambda *_, **__: []):
        monkeypatch.setattr(cuda_check, "KEPT", tmp_path)
        monkeypatch.setattr(cuda_check, "headers_of", headers)
        monkeypatch.setattr(cuda_check.nvcc_build, "compile_all", compiles)
        return cuda_check.old_torch_problems("nvcc")

    return problems


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def test_what_the_oldest_torch_does_not_compile_is_a_problem(old_torch):
    broken = failing(RuntimeError("no such macro"))
    assert old_torch(compiles=broken) == ["with torch 2.10.0: no such macro"]
    assert old_torch() == []
    assert old_torch(compiles=broken) == []  # nothing has changed since it compiled


def test_headers_that_cannot_be_had_are_said_and_are_no_pass(old_torch, capsys):
    away = failing(torch_headers.NoHeadersError("no network"))
    for _ in range(2):
        assert old_torch(headers=away) == []
        assert capsys.readouterr().out == (
            "NOT compiled with torch 2.10.0, whose headers cannot be had: no network\n"
        )


def test_the_oldest_torch_is_the_one_that_is_required():
    assert f'"torch>={cuda_check.OLDEST_TORCH.removesuffix(".0")}"' in (
        ROOT / "pyproject.toml"
    ).read_text("utf-8")


def test_only_the_headers_of_a_wheel_are_kept(monkeypatch, tmp_path):
    def wheel(torch, folder):
        path = folder / f"torch-{torch}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("torch/include/torch/csrc/stable/tensor.h", torch)
            archive.writestr("torch/lib/libtorch.dylib", "")
        return path

    monkeypatch.setattr(torch_headers, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(torch_headers, "_wheel", wheel)
    include = torch_headers.headers_of("2.10.0")
    assert (include / "torch/csrc/stable/tensor.h").read_text() == "2.10.0"
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["2.10.0"]
    monkeypatch.setattr(torch_headers, "_wheel", None)
    assert torch_headers.headers_of("2.10.0") == include


def test_a_wheel_that_pip_does_not_find_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(torch_headers, "KEPT", tmp_path)
    for name, value in {"NO_INDEX": "1", "CONFIG_FILE": "/dev/null", "FIND_LINKS": ""}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(torch_headers.NoHeadersError, match=r"torch==2\.10\.0"):
        torch_headers.headers_of("2.10.0")
