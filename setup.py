"""Decides what this build compiles; all metadata is in pyproject.toml.

ROME_FAST_BUILD=auto (default)  for the CPU where torch and a C++ compiler are found, for CUDA too
                                where torch has CUDA and nvcc is found; else pure Python
ROME_FAST_BUILD=cpu             for the CPU, or fail with the reason
ROME_FAST_BUILD=cuda            for the CPU and for CUDA, or fail with the reason
ROME_FAST_BUILD=none            pure Python

ROME_FAST_ABI3=1                a wheel for every Python from 3.10 on (`make wheel`)

TORCH_CUDA_ARCH_LIST says for which GPUs (csrc/nvcc_build.py has the default).
"""

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

MODE = os.environ.get("ROME_FAST_BUILD", "auto")
ABI3 = os.environ.get("ROME_FAST_ABI3") == "1"
MINIMUM_TORCH = (2, 10)
BUILDING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}
COMPILE_ARGS = ["-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-psabi"]
STABLE_ABI = [("TORCH_TARGET_VERSION", "0x020a000000000000"), ("TORCH_STABLE_ONLY", None)]
CSRC = os.path.abspath("csrc")
CUDA, FACTS = "rome_fast._C_cuda", "rome_fast._facts"

sys.path.insert(0, CSRC)
import nvcc_build  # noqa: E402


def without(what, reason, demanded):
    """Say once that a library is left out, or refuse where it was demanded."""
    if MODE in demanded:
        raise SystemExit(f"rome_fast: ROME_FAST_BUILD={MODE}, but {reason}")
    print(f"rome_fast: installing without the {what} library: {reason}", file=sys.stderr)


def without_native(reason):
    """Pure Python."""
    without("native", reason, ("cpu", "cuda"))
    return {}


def native_build():
    """The arguments for setup() that compile csrc/, or none."""
    if MODE not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(
            f"rome_fast: ROME_FAST_BUILD must be auto, cpu, cuda or none, got {MODE!r}"
        )
    if MODE == "none":
        return without_native("ROME_FAST_BUILD=none")
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        return without_native(f"torch cannot be imported here ({error})")
    if tuple(map(int, torch.__version__.split(".")[:2])) < MINIMUM_TORCH:
        return without_native(f"torch {torch.__version__} is older than 2.10")
    if sys.platform == "win32" or shutil.which(cpp_extension.get_cxx_compiler()) is None:
        return without_native("no g++ or clang++ was found")
    why_no_cuda = reason_without_cuda(torch)
    if why_no_cuda:
        without("CUDA", why_no_cuda, ("cuda",))
    ops = cpp_extension.CppExtension(
        "rome_fast._C",
        [
            "csrc/register_cpu.cpp",
            *sorted(glob.glob("csrc/glue/*_cpu.cpp")),
            *sorted(glob.glob("csrc/kernels/cpu/*.cpp")),
            *(["csrc/old_glibc.cpp"] if ABI3 else []),
        ],
        include_dirs=[CSRC],
        define_macros=STABLE_ABI,
        extra_compile_args=COMPILE_ARGS,
        py_limited_api=True,
    )
    extensions = [ops, facts_extension(torch, cpp_extension, why_no_cuda)]
    extensions += [] if why_no_cuda else [cuda_extension()]
    return {
        "ext_modules": extensions,
        "cmdclass": {"build_ext": build_command(cpp_extension)},
        "options": {"bdist_wheel": wheel_tags(has_cuda=not why_no_cuda)} if ABI3 else {},
    }


def wheel_tags(has_cuda):
    """For every Python; a wheel with CUDA has another name than one without."""
    tags = {"py_limited_api": "cp310"}
    if has_cuda:
        release = nvcc_build.nvcc_version(nvcc_build.find_nvcc())
        tags["build_number"] = f"1cu{release.split('.')[0]}"
    return tags


def facts_extension(torch, cpp_extension, why_no_cuda):
    """rome_fast._facts: with what the others were compiled, or why not."""
    facts = {"ROME_FAST_TORCH_VERSION": torch.__version__}
    if why_no_cuda:
        facts["ROME_FAST_WHY_NO_CUDA"] = why_no_cuda
    else:
        facts["ROME_FAST_NVCC_VERSION"] = nvcc_build.nvcc_version(nvcc_build.find_nvcc())
        facts["ROME_FAST_CUDA_ARCHS"] = ", ".join(nvcc_build.archs())
    return Extension(
        FACTS,
        ["csrc/module.cpp", "csrc/kernels/cpu/isa.cpp"],
        include_dirs=[CSRC, *cpp_extension.include_paths()],
        define_macros=[(name, f'"{value}"') for name, value in facts.items()],
        extra_compile_args=["-O1", "-g0", "-fvisibility=hidden"],
        language="c++",
        py_limited_api=ABI3,
    )


def reason_without_cuda(torch):
    """Why the CUDA library is not wanted or cannot be compiled, or ""."""
    if MODE == "cpu":
        return "ROME_FAST_BUILD=cpu"
    if MODE == "auto" and torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    nvcc = nvcc_build.find_nvcc()
    if nvcc is None:
        return "no nvcc was found: set CUDA_HOME, or pip install cuda-toolkit[nvcc,cccl]==13.*"
    try:
        release = nvcc_build.nvcc_version(nvcc)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{nvcc} does not run: {error}"
    if torch.version.cuda and torch.version.cuda.split(".")[0] != release.split(".")[0]:
        reason = f"torch is built with CUDA {torch.version.cuda}, and {nvcc} is of {release}"
        return f"{reason}: set CUDA_HOME to a CUDA toolkit of torch's"
    return ""


def cuda_extension():
    """rome_fast._C_cuda, which nvcc_build compiles."""
    sources = [os.path.relpath(path) for path in nvcc_build.sources()]
    return Extension(CUDA, sources, py_limited_api=True)


def build_command(cpp_extension):
    """torch's build_ext; what fails to compile and was not demanded is left out."""

    class BuildNative(cpp_extension.BuildExtension):
        def run(self):
            try:
                super().run()
            except Exception as error:
                without_native(f"compiling failed: {error}")
                self.extensions.clear()

        def build_extensions(self):
            cuda = [e for e in self.extensions if e.name == CUDA and self.compiles_cuda(e)]
            self.extensions = [e for e in self.extensions if e.name != CUDA]
            # Their flags say what else is built, and setuptools looks at sources alone.
            Path(self.get_ext_fullpath(FACTS)).unlink(missing_ok=True)
            super().build_extensions()
            self.extensions += cuda

        def compiles_cuda(self, extension):
            try:
                compile_cuda(self, extension, cpp_extension)
            except (OSError, RuntimeError) as error:
                without("CUDA", f"compiling failed: {error}", ("cuda",))
                facts = next(e for e in self.extensions if e.name == FACTS)
                facts.define_macros.append(("ROME_FAST_WHY_NO_CUDA", '"compiling failed"'))
                return False
            return True

    return BuildNative


def compile_cuda(command, extension, cpp_extension):
    """By plain nvcc, so that torch may be a CPU build: it loads where torch has CUDA."""
    nvcc, folder = nvcc_build.find_nvcc(), Path(command.build_temp).absolute() / "cuda"
    includes, flags = cpp_extension.include_paths(), nvcc_build.arch_flags()
    compiled = nvcc_build.compile_all(nvcc, nvcc_build.sources(), folder, includes, flags)
    library = Path(command.get_ext_fullpath(extension.name)).absolute()
    objects = [part.target for part in compiled]
    nvcc_build.link(nvcc, objects, library, cpp_extension.library_paths())


# Metadata commands stop here, so that they never import torch.
setup(**(native_build() if BUILDING & set(sys.argv) else {}))
