"""The CUDA library by plain nvcc, which needs no CUDA torch: only its headers, and no GPU.

setup.py builds it so; tools/cuda_check.py reads what the assembler says.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parent
# Ampere and Hopper as they are, what comes later from Hopper's portable PTX.
ARCHS = "8.0;9.0a;9.0+PTX"
DEFINES = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY", "-DUSE_CUDA"]
# As torch compiles extensions: half precision has functions, no operators.
DEFINES += [
    f"-D__CUDA_NO_{what}__"
    for what in ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS")
]
FLAGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


def glue() -> list[Path]:
    """The sources that include headers of torch."""
    return [CSRC / "register_cuda.cpp", *sorted(CSRC.glob("glue/*_cuda.cpp"))]


def sources() -> list[Path]:
    """What the library is made of."""
    return [*glue(), *sorted(CSRC.glob("kernels/cuda/*.cu"))]


def find_nvcc() -> str | None:
    """The compiler that is asked for, in the PATH, of conda, of pip, or in its usual place."""
    asked = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    usual = [os.environ.get("CONDA_PREFIX"), sys.prefix, *_homes_of_pip(), "/usr/local/cuda"]
    places = [*_compilers(asked), "nvcc", *_compilers(usual)]
    return next(filter(None, map(shutil.which, places)), None)


def _compilers(homes: Sequence[str | None]) -> list[str]:
    return [str(Path(home) / "bin" / "nvcc") for home in homes if home]


def _homes_of_pip() -> list[str]:
    """The toolkits that NVIDIA's packages make in this environment, such as nvidia/cu13."""
    found = importlib.util.find_spec("nvidia")
    folders = found.submodule_search_locations if found else None
    return [str(home) for folder in folders or [] for home in sorted(Path(folder).glob("*"))]


def toolkit_of(nvcc: str) -> Path:
    """The folder of its toolkit, also where it is a script that calls the compiler."""
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    tops = [line.partition("TOP=")[2] for line in said.splitlines() if line.startswith("#$ TOP=")]
    return Path(tops[0]).resolve() if tops else Path(nvcc).parents[1]


def toolkit_folders(nvcc: str, name: str) -> list[str]:
    """Its folders "include" or "lib", also those that the compiler does not know itself.

    That of pip's packages looks for lib64, which they have not; conda has a folder for each target.
    """
    top = toolkit_of(nvcc)
    places = [top / name, *top.glob(f"targets/*/{name}")]
    # A compiler that is told of /usr/include does not find the standard library's headers any more.
    return [str(path) for path in places if path.is_dir() and path != Path("/usr/include")]


def nvcc_version(nvcc: str) -> str:
    """Such as 13.0."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return said.split("release ")[1].split(",")[0]


def archs() -> list[str]:
    """TORCH_CUDA_ARCH_LIST, such as "8.0;9.0a+PTX", or what is usual here."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHS
    return asked.replace(" ", ";").strip(";").split(";")


def arch_flags() -> list[str]:
    """The flags for ``archs()``: "9.0a" is code for sm_90a alone, "9.0+PTX" adds PTX.

    What is portable and is there as such a special code needs no code of its own.
    """
    flags = []
    for arch in archs():
        number = arch.removesuffix("+PTX").replace(".", "")
        if f"{arch.removesuffix('+PTX')}a" not in archs():
            flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if arch.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


@dataclass(frozen=True)
class Compiled:
    """One source's object, and what the assembler said of its kernels."""

    source: Path
    target: Path
    said: str


def compile_all(
    nvcc: str, chosen: Sequence[Path], folder: Path, includes: Sequence[str], flags: Sequence[str]
) -> list[Compiled]:
    """Objects of the sources, one after the other on each core; RuntimeError tells what failed."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [CSRC, *includes, *toolkit_folders(nvcc, "include")]
    always = [*FLAGS, *DEFINES, *(f"-I{path}" for path in paths)]

    def compiled(source: Path) -> Compiled:
        target = folder / f"{source.stem}.o"
        command = [nvcc, "-c", str(source), "-o", str(target), *always, *flags]
        return Compiled(source, target, _run(command))

    # The largest first: two cores are then busy to the end.
    ordered = sorted(chosen, key=lambda path: -path.stat().st_size)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        return list(pool.map(compiled, ordered))


def link(nvcc: str, objects: Sequence[Path], library: Path, torch_paths: Sequence[str]) -> None:
    """The library; RuntimeError where a symbol is in none of what it is linked with."""
    stand_in = stand_in_for_torch_cuda(nvcc, objects[0].parent / "stand_in")
    folders = [stand_in, *torch_paths, *toolkit_folders(nvcc, "lib")]
    links = [f"-L{path}" for path in folders] + ["-ltorch_cuda", "-ltorch_cpu", "-lc10"]
    links += ["-Xlinker", "--no-undefined"]
    library.parent.mkdir(parents=True, exist_ok=True)
    _run([nvcc, "-shared", "-cudart=static", *map(str, objects), *links, "-o", str(library)])


def stand_in_for_torch_cuda(nvcc: str, folder: Path) -> Path:
    """A folder with a libtorch_cuda.so for the linker: where it is loaded, torch's own is there."""
    folder.mkdir(exist_ok=True)
    source, library = folder / "torch_cuda.cpp", folder / "libtorch_cuda.so"
    source.write_text('extern "C" void aoti_torch_get_current_cuda_stream() {}\n')
    options = ["-cudart=none", "-Xcompiler", "-fPIC", "-Xlinker", f"-soname={library.name}"]
    _run([nvcc, "-shared", *options, str(source), "-o", str(library)])
    return folder


def _run(command: Sequence[str]) -> str:
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{process.stdout}{process.stderr}")
    return process.stdout + process.stderr
