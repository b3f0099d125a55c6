"""Decides whether this build compiles the native library; all metadata is in pyproject.toml.

ROME_FAST_BUILD=auto (default)  compile where torch and a C++ compiler are found, else pure Python
ROME_FAST_BUILD=cpu             compile, or fail with the reason
ROME_FAST_BUILD=none            pure Python
"""

import glob
import os
import shutil
import sys

from setuptools import Extension, setup

MODE = os.environ.get("ROME_FAST_BUILD", "auto")
MINIMUM_TORCH = (2, 10)
BUILDING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}
COMPILE_ARGS = ["-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-psabi"]


def without_native(reason):
    """Say once why the package will be pure Python, or refuse where native was demanded."""
    if MODE == "cpu":
        raise SystemExit(f"rome_fast: ROME_FAST_BUILD=cpu, but {reason}")
    print(f"rome_fast: installing without the native library: {reason}", file=sys.stderr)
    return {}


def native_build():
    """The arguments for setup() that compile csrc/, or none."""
    if MODE not in ("auto", "cpu", "none"):
        raise SystemExit(f"rome_fast: ROME_FAST_BUILD must be auto, cpu or none, got {MODE!r}")
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

    class BuildNative(cpp_extension.BuildExtension):
        def run(self):
            try:
                super().run()
            except Exception as error:
                without_native(f"compiling failed: {error}")
                self.extensions.clear()

    ops = cpp_extension.CppExtension(
        "rome_fast._C",
        ["csrc/register_cpu.cpp", *sorted(glob.glob("csrc/*/**/*.cpp", recursive=True))],
        include_dirs=[os.path.abspath("csrc")],
        define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000"), ("TORCH_STABLE_ONLY", None)],
        extra_compile_args=COMPILE_ARGS,
        py_limited_api=True,
    )
    facts = Extension(
        "rome_fast._facts",
        ["csrc/module.cpp", "csrc/kernels/cpu/isa.cpp"],
        include_dirs=[os.path.abspath("csrc"), *cpp_extension.include_paths()],
        define_macros=[("ROME_FAST_TORCH_VERSION", f'"{torch.__version__}"')],
        extra_compile_args=["-O1", "-g0", "-fvisibility=hidden"],
        language="c++",
    )
    return {"ext_modules": [ops, facts], "cmdclass": {"build_ext": BuildNative}}


# Metadata commands stop here, so that they never import torch.
setup(**(native_build() if BUILDING & set(sys.argv) else {}))
