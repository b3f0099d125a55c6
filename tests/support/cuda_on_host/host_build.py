"""Compiles the CUDA sources for the host: the same text, other headers (see fibers.h).

Objects are kept under build/cuda_on_host by what they are made of.
"""

from __future__ import annotations

import hashlib
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock
from torch.utils.cpp_extension import get_cxx_compiler, include_paths, library_paths

ROOT = Path(__file__).resolve().parents[3]
HERE = ROOT / "tests" / "support" / "cuda_on_host"
KEPT = ROOT / "build" / "cuda_on_host"
FLAGS = [
    *("-x", "c++", "-std=c++20", "-O2", "-g0", "-fPIC", "-ffp-contract=off", "-w"),
    *("-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY", "-DUSE_CUDA"),
    *("-DROME_FAST_LIBRARY=rome_fast_emulated", "-DROME_FAST_DISPATCH_KEY=CPU"),
    *(f"-I{path}" for path in (HERE, ROOT / "csrc", *include_paths())),
]


ON_HOST_SOURCES = [HERE / "fibers.cpp"]


def sources() -> list[Path]:
    """What the CUDA library is made of, and the fibers."""
    csrc = ROOT / "csrc"
    return [
        *(csrc / "register_cuda.cpp", *ON_HOST_SOURCES),
        *sorted((csrc / "glue").glob("*_cuda.cpp")),
        *sorted((csrc / "kernels" / "cuda").glob("*.cu")),
    ]


def build(paths: list[Path], name: str) -> Path:
    """The shared library made of ``paths``."""
    headers = [p for folder in (HERE, ROOT / "csrc") for p in sorted(folder.rglob("*.*h"))]
    common = _digest(*headers, Path(__file__))
    KEPT.mkdir(parents=True, exist_ok=True)
    # Another worker of the same run finds here what the first one has compiled.
    with FileLock(KEPT / "lock"), ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda path: _compiled(path, common), paths))
        names = hashlib.sha256("".join(o.name for o in objects).encode()).hexdigest()[:16]
        library = KEPT / f"{name}-{names}.so"
        if not library.exists():
            links = [f"-L{path}" for path in library_paths()]
            _run("-shared", *map(str, objects), *links, "-ltorch_cpu", "-lc10", target=library)
    return library


def _compiled(source: Path, common: str) -> Path:
    target = KEPT / f"{source.stem}-{common}-{_digest(source)}.o"
    if not target.exists():
        _run(*FLAGS, "-c", str(source), target=target)
    return target


def _run(*arguments: str, target: Path) -> None:
    part = target.with_suffix(".part")  # a compilation that is ended leaves no half of an object
    command = [get_cxx_compiler(), *arguments, "-o", str(part)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{process.stderr}")
    part.replace(target)


def _digest(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
