"""The CUDA library by plain nvcc, which needs no CUDA torch: only its headers, and no GPU.

setup.py uses it where torch is a CPU build; tools/cuda_check.py reads what the assembler says.
"""

from __future__ import annotations

import os
import shutil
import subprocess
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


def sources() -> list[Path]:
    """What the library is made of."""
    return [
        CSRC / "register_cuda.cpp",
        *sorted(CSRC.glob("glue/*_cuda.cpp")),
        *sorted(CSRC.glob("kernels/cuda/*.cu")),
    ]


def find_nvcc() -> str | None:
    """The compiler of CUDA_HOME, of the PATH, or of its usual place."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    beside = [str(Path(home) / "bin" / "nvcc") for home in [*homes, "/usr/local/cuda"] if home]
    asked, usual = beside[:-1], beside[-1:]
    found = [shutil.which(place) for place in [*asked, "nvcc", *usual]]
    return next((place for place in found if place), None)


def toolkit_of(nvcc: str) -> str:
    """The folder of its toolkit, also where it is a script that calls the compiler."""
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    tops = [line.partition("TOP=")[2] for line in said.splitlines() if line.startswith("#$ TOP=")]
    return str(Path(tops[0]).resolve() if tops else Path(nvcc).parents[1])


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
    nvcc: str, folder: Path, includes: Sequence[str], extra: Sequence[str] = ()
) -> list[Compiled]:
    """Objects of all sources, one after the other on each core; RuntimeError tells what failed."""
    folder.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> Compiled:
        target = folder / f"{source.stem}.o"
        command = [nvcc, "-c", "-x", "cu", str(source), "-o", str(target), *FLAGS, *DEFINES]
        command += [f"-I{path}" for path in (CSRC, *includes)] + arch_flags() + [*extra]
        return Compiled(source, target, _run(command))

    # The largest first: two cores are then busy to the end.
    ordered = sorted(sources(), key=lambda path: -path.stat().st_size)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        return list(pool.map(compiled, ordered))


def link(nvcc: str, objects: Sequence[Path], library: Path, torch_paths: Sequence[str]) -> None:
    """The library; RuntimeError where a symbol is in none of what it is linked with."""
    folders = [_stand_in_for_torch_cuda(nvcc, objects[0].parent / "stand_in"), *torch_paths]
    links = [f"-L{path}" for path in folders] + ["-ltorch_cuda", "-ltorch_cpu", "-lc10"]
    links += ["-Xlinker", "--no-undefined"]
    library.parent.mkdir(parents=True, exist_ok=True)
    _run([nvcc, "-shared", "-cudart=static", *map(str, objects), *links, "-o", str(library)])


def _stand_in_for_torch_cuda(nvcc: str, folder: Path) -> Path:
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
