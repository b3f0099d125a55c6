"""Building the package with and without torch, and what setup.py does when it cannot compile."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from torch.utils.cpp_extension import get_cxx_compiler

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "csrc"))

import nvcc_build  # noqa: E402

BUILD_FILES = ["MANIFEST.in", "pyproject.toml", "setup.py", "README.md", "LICENSE"]

# Makes `import torch` fail, as it does in an isolated build environment.
NO_TORCH = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"


@pytest.fixture
def project(tmp_path):
    """A copy of what a build reads, so that nothing is written into the working tree."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    shutil.copytree(ROOT / "rome_fast", copy / "rome_fast", ignore=shutil.ignore_patterns("*.so"))
    blocker = tmp_path / "no_torch"
    blocker.mkdir()
    (blocker / "torch.py").write_text(NO_TORCH)
    return copy


def call_backend(project, hook, with_torch=False, **environment):
    """Call one PEP 517 hook in a fresh interpreter, as pip does."""
    code = f"from setuptools import build_meta; print(build_meta.{hook}('out'))"
    (project / "out").mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ROME_FAST_")}
    if not with_torch:
        kept["PYTHONPATH"] = str(project.parent / "no_torch")
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def wheel_contents(project):
    (wheel,) = (project / "out").glob("*.whl")
    return wheel.name, set(zipfile.ZipFile(wheel).namelist())


def test_metadata_needs_no_torch(project):
    process = call_backend(project, "prepare_metadata_for_build_wheel")
    assert process.returncode == 0, process.stderr
    metadata = next((project / "out").glob("*.dist-info")) / "METADATA"
    assert "Name: rome-fast" in metadata.read_text()
    assert "Requires-Dist: torch>=2.10" in metadata.read_text()


def test_wheel_without_torch_is_pure_python_and_says_so(project):
    process = call_backend(project, "build_wheel")
    assert process.returncode == 0, process.stderr
    assert "installing without the native library: torch cannot be imported" in process.stderr
    name, files = wheel_contents(project)
    assert name.endswith("-py3-none-any.whl")
    assert {"rome_fast/ops/__init__.py", "rome_fast/py.typed"} <= files
    assert not any(file.endswith(".so") for file in files)
    assert not any(file.startswith(("tests/", "csrc/")) for file in files)


def test_wheel_carries_every_data_file(project):
    process = call_backend(project, "build_wheel", ROME_FAST_BUILD="none")
    assert process.returncode == 0, process.stderr
    _, files = wheel_contents(project)
    data = {
        str(path.relative_to(project))
        for path in (project / "rome_fast").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert data - files == set()


@pytest.mark.exhaustive
def test_a_wheel_for_every_python_says_with_what_it_was_built(project, tmp_path):
    if shutil.which(get_cxx_compiler()) is None:
        pytest.skip("no C++ compiler here: there is no native wheel")
    (project / "csrc" / "register_cpu.cpp").write_text("")
    for source in [*project.glob("csrc/glue/*.cpp"), *project.glob("csrc/kernels/cpu/*.cpp")]:
        if source.name != "isa.cpp":
            source.unlink()  # nothing to wait for
    modes = dict(ROME_FAST_BUILD="cpu", ROME_FAST_ABI3="1")
    process = call_backend(project, "build_wheel", with_torch=True, **modes)
    assert process.returncode == 0, process.stderr
    name, files = wheel_contents(project)
    assert "-cp310-abi3-" in name
    libraries = {file for file in files if file.endswith(".so")}
    assert libraries == {"rome_fast/_C.abi3.so", "rome_fast/_facts.abi3.so"}
    zipfile.ZipFile(project / "out" / name).extract("rome_fast/_facts.abi3.so", tmp_path)
    code = "import _facts; print(sorted(_facts.build_facts()))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "rome_fast", capture_output=True, text=True)
    assert done.stdout.strip() == "['compiler', 'simd', 'torch']", done.stderr


def test_demanding_the_library_without_torch_is_an_error(project):
    process = call_backend(project, "build_wheel", ROME_FAST_BUILD="cpu")
    assert process.returncode != 0
    assert "ROME_FAST_BUILD=cpu, but torch cannot be imported" in process.stderr


@pytest.mark.exhaustive
def test_a_missing_compiler_falls_back_and_says_so(project):
    pytest.importorskip("torch")
    environment = dict(CXX="/nonexistent/c++", PATH=str(Path(sys.executable).parent))
    process = call_backend(project, "build_wheel", with_torch=True, **environment)
    assert process.returncode == 0, process.stderr
    assert "installing without the native library: no g++ or clang++ was found" in process.stderr
    assert wheel_contents(project)[0].endswith("-py3-none-any.whl")


@pytest.mark.exhaustive
def test_a_failing_compile_falls_back_and_says_so(project):
    (project / "csrc" / "register_cpu.cpp").write_text("#error broken on purpose\n")
    for kernel in [*project.glob("csrc/glue/*.cpp"), *project.glob("csrc/kernels/cpu/*.cpp")]:
        kernel.unlink()  # nothing to wait for
    if shutil.which(get_cxx_compiler()) is None:
        pytest.skip("no C++ compiler here: nothing can fail to compile")
    process = call_backend(project, "build_wheel", with_torch=True)
    assert process.returncode == 0, process.stderr
    assert "installing without the native library: compiling failed" in process.stderr
    assert not any(file.endswith(".so") for file in wheel_contents(project)[1])


def test_an_unknown_mode_is_refused(project):
    process = call_backend(project, "build_wheel", ROME_FAST_BUILD="gpu")
    assert process.returncode != 0
    assert "ROME_FAST_BUILD must be auto, cpu, cuda or none, got 'gpu'" in process.stderr


def without_cuda_kernels(project):
    """A library of no kernels takes seconds to compile; `make cuda-check` compiles them all."""
    for source in [*project.glob("csrc/glue/*_cuda.cpp"), *project.glob("csrc/kernels/cuda/*.cu")]:
        source.unlink()
    # What it registered is gone, and a missing symbol is an error of the linker.
    headers_alone = "#include <torch/csrc/stable/library.h>\n"
    (project / "csrc" / "register_cuda.cpp").write_text(headers_alone)


@pytest.mark.exhaustive
def test_the_cuda_library_is_built_without_a_gpu_and_without_a_cuda_torch(project):
    if nvcc_build.find_nvcc() is None:
        pytest.skip("no nvcc here: no CUDA library can be built")
    without_cuda_kernels(project)
    process = call_backend(project, "build_wheel", with_torch=True, ROME_FAST_BUILD="cuda")
    assert process.returncode == 0, process.stderr
    _, files = wheel_contents(project)
    assert {"rome_fast/_C.abi3.so", "rome_fast/_C_cuda.abi3.so"} <= files


@pytest.mark.exhaustive
def test_demanding_cuda_without_nvcc_is_an_error(project):
    compiler = shutil.which(get_cxx_compiler())
    if compiler is None:
        pytest.skip("no C++ compiler here: it is missed first")
    (project / "nvcc_build.py").write_text(
        (project / "csrc" / "nvcc_build.py").read_text().replace('"nvcc"', '"no-such-nvcc"')
    )
    shutil.move(project / "nvcc_build.py", project / "csrc" / "nvcc_build.py")
    process = call_backend(project, "build_wheel", with_torch=True, ROME_FAST_BUILD="cuda")
    assert process.returncode != 0
    assert "ROME_FAST_BUILD=cuda, but no nvcc was found: set CUDA_HOME" in process.stderr


@pytest.mark.parametrize(
    ("asked", "flags"),
    [
        (None, ["compute_80,code=sm_80", "compute_90a,code=sm_90a", "compute_90,code=compute_90"]),
        (
            "8.6 9.0+PTX",
            ["compute_86,code=sm_86", "compute_90,code=sm_90", "compute_90,code=compute_90"],
        ),
    ],
)
def test_architectures_are_those_asked_for(asked, flags, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    if asked:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    assert [f for f in nvcc_build.arch_flags() if f != "-gencode"] == [
        f"arch={flag}" for flag in flags
    ]


# As setup.py sees a torch that is built with CUDA; its libraries are not needed to fail.
CUDA_TORCH = """
import torch
from torch.utils import cpp_extension
torch.version.cuda, cpp_extension.CUDA_HOME = {release!r}, {home!r}
from setuptools import build_meta
build_meta.build_wheel('out')
"""


def build_with_cuda_torch(project, release, mode="auto"):
    nvcc = nvcc_build.find_nvcc()
    if nvcc is None or shutil.which(get_cxx_compiler()) is None:
        pytest.skip("no nvcc or no C++ compiler here: nothing can fail to compile")
    code = CUDA_TORCH.format(
        release=release or nvcc_build.nvcc_version(nvcc), home=str(Path(nvcc).parents[1])
    )
    (project / "csrc" / "register_cpu.cpp").write_text("")
    for source in [*project.glob("csrc/glue/*.cpp"), *project.glob("csrc/kernels/*/*.c*")]:
        if source.name != "isa.cpp" and source.suffix != ".cuh":
            source.unlink()  # nothing to wait for
    (project / "csrc" / "register_cuda.cpp").write_text("#error broken on purpose\n")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ROME_FAST_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env=kept | {"ROME_FAST_BUILD": mode},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.exhaustive
def test_cuda_that_fails_to_compile_leaves_the_cpu_library(project):
    process = build_with_cuda_torch(project, None)
    assert process.returncode == 0, process.stderr
    assert "installing without the CUDA library: compiling failed" in process.stderr
    (wheel,) = (project / "out").glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    assert "rome_fast/_C.abi3.so" in files and "rome_fast/_C_cuda.abi3.so" not in files


@pytest.mark.exhaustive
def test_an_nvcc_of_another_major_version_is_refused_with_both_versions(project):
    process = build_with_cuda_torch(project, "1.0", mode="cuda")
    assert process.returncode != 0
    nvcc = nvcc_build.find_nvcc()
    reason = f"torch is built with CUDA 1.0, and {nvcc} is of {nvcc_build.nvcc_version(nvcc)}"
    assert f"ROME_FAST_BUILD=cuda, but {reason}" in process.stderr


def test_a_source_distribution_carries_what_it_is_built_from(project):
    (project / "csrc" / "__pycache__").mkdir(exist_ok=True)
    (project / "csrc" / "__pycache__" / "nvcc_build.cpython-311.pyc").write_bytes(b"")
    process = call_backend(project, "build_sdist")
    assert process.returncode == 0, process.stderr
    (archive,) = (project / "out").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        files = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    sources = {
        str(path.relative_to(project)) for path in (project / "csrc").rglob("*") if path.is_file()
    }
    assert {path for path in sources if not path.endswith(".pyc")} <= files
    assert not any(path.endswith(".pyc") for path in files)


def test_the_toolkit_of_a_wrapper_is_the_one_that_it_calls(tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho '#$ _HERE_=/x/bin' >&2\necho '#$ TOP=/opt/cuda/bin/..' >&2\n")
    nvcc.chmod(0o755)
    assert nvcc_build.toolkit_of(str(nvcc)) == "/opt/cuda"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    assert nvcc_build.toolkit_of(str(nvcc)) == str(tmp_path)


def test_no_macro_is_used_that_older_versions_of_torch_lack():
    """torch 2.10 to 2.12 have no STABLE_TORCH_ERROR_CODE_CHECK."""
    sources = [
        path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cu", ".cuh", ".cpp")
    ]
    assert sources
    assert [p.name for p in sources if "STABLE_TORCH_ERROR_CODE_CHECK" in p.read_text()] == []
