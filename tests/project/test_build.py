"""Building the package with and without torch, and what setup.py does when it cannot compile."""

import json
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


def facts_of_wheel(project):
    """What rome_fast._facts says, in a process of its own."""
    (wheel,) = (project / "out").glob("*.whl")
    folder = project.parent / "opened"
    zipfile.ZipFile(wheel).extractall(folder)
    code = "import _facts, json; print(json.dumps(_facts.build_facts()))"
    command = [sys.executable, "-c", code]
    return json.loads(subprocess.check_output(command, cwd=folder / "rome_fast", text=True))


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
def test_a_wheel_for_every_python_says_with_what_it_was_built(project):
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
    facts = facts_of_wheel(project)
    assert sorted(facts) == ["compiler", "simd", "torch", "why_no_cuda"]
    assert facts["why_no_cuda"] == "ROME_FAST_BUILD=cpu"


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


def hide_nvcc(project):
    file = project / "csrc" / "nvcc_build.py"
    file.write_text(file.read_text().replace('"nvcc"', '"no-such-nvcc"'))


@pytest.mark.exhaustive
def test_demanding_cuda_without_nvcc_is_an_error(project):
    compiler = shutil.which(get_cxx_compiler())
    if compiler is None:
        pytest.skip("no C++ compiler here: it is missed first")
    hide_nvcc(project)
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
torch.version.cuda = {release!r}
from setuptools import build_meta
build_meta.build_wheel('out')
"""


def build_with_cuda_torch(project, release, mode="auto", **environment):
    if shutil.which(get_cxx_compiler()) is None:
        pytest.skip("no C++ compiler here: it is missed first")
    (project / "csrc" / "register_cpu.cpp").write_text("")
    for source in [*project.glob("csrc/glue/*.cpp"), *project.glob("csrc/kernels/*/*.c*")]:
        if source.name != "isa.cpp" and source.suffix != ".cuh":
            source.unlink()  # nothing to wait for
    (project / "csrc" / "register_cuda.cpp").write_text("#error broken on purpose\n")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ROME_FAST_")}
    return subprocess.run(
        [sys.executable, "-c", CUDA_TORCH.format(release=release)],
        cwd=project,
        env=kept | {"ROME_FAST_BUILD": mode} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def release():
    """The version of the nvcc that is here."""
    nvcc = nvcc_build.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc here: nothing can fail to compile")
    return nvcc_build.nvcc_version(nvcc)


@pytest.mark.exhaustive
def test_cuda_that_fails_to_compile_leaves_the_cpu_library(project, release):
    process = build_with_cuda_torch(project, release)
    assert process.returncode == 0, process.stderr
    assert "installing without the CUDA library: compiling failed" in process.stderr
    _, files = wheel_contents(project)
    assert "rome_fast/_C.abi3.so" in files and "rome_fast/_C_cuda.abi3.so" not in files
    assert facts_of_wheel(project)["why_no_cuda"] == "compiling failed"


@pytest.mark.exhaustive
def test_without_nvcc_the_cpu_library_is_built_and_knows_why_it_is_alone(project):
    hide_nvcc(project)
    process = build_with_cuda_torch(project, "13.0")
    assert process.returncode == 0, process.stderr
    assert "rome_fast/_C.abi3.so" in wheel_contents(project)[1]
    facts = facts_of_wheel(project)
    assert facts["why_no_cuda"] == (
        "no nvcc was found: set CUDA_HOME, or pip install cuda-toolkit[nvcc,cccl]==13.*"
    )
    assert "nvcc" not in facts and "cuda_archs" not in facts


@pytest.mark.exhaustive
def test_an_nvcc_of_another_major_version_is_refused_with_both_versions(project, release):
    process = build_with_cuda_torch(project, "1.0", mode="cuda")
    assert process.returncode != 0
    reason = f"torch is built with CUDA 1.0, and {nvcc_build.find_nvcc()} is of {release}"
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


def made_compiler(home):
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    return str(nvcc)


def test_nvcc_is_found_wherever_it_is_installed(tmp_path, monkeypatch):
    """In this order: what is asked for, the PATH, conda, this environment, pip's packages."""
    names = ("asked", "path", "conda", "prefix", "site/nvidia/cu13")
    asked, path, conda, prefix, pip = (tmp_path / name for name in names)
    monkeypatch.setenv("CUDA_HOME", str(asked))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(path / "bin"))
    monkeypatch.setenv("CONDA_PREFIX", str(conda))
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for nvcc in [made_compiler(home) for home in (asked, path, conda, prefix, pip)]:
        assert nvcc_build.find_nvcc() == nvcc
        Path(nvcc).unlink()
    assert nvcc_build.find_nvcc() in (None, "/usr/local/cuda/bin/nvcc")


@pytest.mark.parametrize("folder", ["lib", "targets/x86_64-linux/lib"])
def test_libraries_of_a_toolkit_are_found_without_lib64(folder, tmp_path):
    """pip's packages have lib, and conda's a folder for each target."""
    nvcc = made_compiler(tmp_path)
    (tmp_path / folder).mkdir(parents=True)
    assert nvcc_build.toolkit_folders(nvcc, "lib") == [str(tmp_path / folder)]
    assert nvcc_build.toolkit_folders(nvcc, "include") == []


def test_the_toolkit_of_a_wrapper_is_the_one_that_it_calls(tmp_path):
    nvcc = made_compiler(tmp_path)
    assert nvcc_build.toolkit_of(nvcc) == tmp_path
    says = "echo '#$ _HERE_=/x/bin' >&2\necho '#$ TOP=/opt/cuda/bin/..' >&2\n"
    Path(nvcc).write_text(f"#!/bin/sh\n{says}")
    assert nvcc_build.toolkit_of(nvcc) == Path("/opt/cuda")


def test_no_macro_is_used_that_older_versions_of_torch_lack():
    """torch 2.10 to 2.12 have no STABLE_TORCH_ERROR_CODE_CHECK."""
    sources = [
        path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cu", ".cuh", ".cpp")
    ]
    assert sources
    assert [p.name for p in sources if "STABLE_TORCH_ERROR_CODE_CHECK" in p.read_text()] == []
