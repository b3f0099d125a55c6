"""Compiles and links every CUDA kernel and reads what the compiler says of them; needs no GPU.

    python tools/cuda_check.py

It fails where a source does not compile with the torch that is installed or the oldest that is
supported, where a hot kernel spills registers or keeps an array in local memory, where the
assembler had to serialise the tensor cores' work, or where a kernel that is written for them does
not use them. Objects are kept in build/cuda-check until a source changes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "cuda-check"
sys.path[:0] = [str(ROOT / "csrc"), str(ROOT / "tools")]

import nvcc_build  # noqa: E402
from torch_headers import NoHeadersError, headers_of  # noqa: E402

OLDEST_TORCH = "2.10.0"
# A naive kernel may do as it likes: it is there to be compared with.
NAIVE = "naive"
# Instructions that a kernel's machine code must hold, by architecture. PTX says the same earlier.
TENSOR_CORES = {
    ("wgmma", "sm_90a"): ("HGMMA", "wgmma.mma_async"),
    ("mma", "sm_80"): ("HMMA", "mma.sync"),
    ("mma", "sm_90a"): ("HMMA", "mma.sync"),
}
PTXAS = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Kernel:
    """What the assembler says of a kernel on one architecture; sizes are bytes."""

    name: str
    arch: str
    registers: int
    stack: int
    spills: int

    @property
    def problem(self) -> str:
        """What is wrong with it, or ""."""
        if NAIVE in self.name or not (self.stack or self.spills):
            return ""
        return f"{self.name} on {self.arch}: {self.spills} bytes spilled, {self.stack} of stack"


def kernels_of(said: str) -> list[Kernel]:
    """The kernels in the assembler's report (-Xptxas -v)."""
    return [
        Kernel(
            name=readable(found["name"]),
            arch=found["arch"],
            registers=int(found["registers"]),
            stack=int(found["stack"]),
            spills=int(found["stores"]) + int(found["loads"]),
        )
        for found in PTXAS.finditer(said)
    ]


def warnings_of(said: str) -> list[str]:
    """What costs speed without a spill: serialised wgmma, an ignored setmaxnreg."""
    return [line for line in said.splitlines() if re.search(r"C75\d\d|wgmma.*serializ", line)]


def main() -> int:
    """Compile, report, judge; the exit status."""
    nvcc = nvcc_build.find_nvcc()
    if nvcc is None:
        print("cuda-check: no nvcc here, so no CUDA kernel was compiled")
        return 0
    said, objects, seconds = compiled(nvcc)
    kernels = sorted(kernels_of(said), key=lambda k: (k.name, k.arch))
    print(f"{len(objects)} CUDA sources compiled and linked by nvcc in {seconds:.0f} s")
    print(f"{'registers':>9} {'spilled':>7} {'stack':>5}  kernel")
    for k in kernels:
        print(f"{k.registers:9} {k.spills:7} {k.stack:5}  {k.arch:7} {k.name}")
    problems = [k.problem for k in kernels if k.problem] + warnings_of(said)
    problems += tensor_core_problems(objects, kernels) + old_torch_problems(nvcc)
    for problem in problems:
        print(f"cuda-check: {problem}", file=sys.stderr)
    return 1 if problems or not kernels else 0


def compiled(nvcc: str) -> tuple[str, list[Path], float]:
    """What the assembler said, the objects, and the seconds they took when they were made."""
    record = KEPT / "record.json"
    digest = _digest(nvcc)
    if record.exists() and (kept := json.loads(record.read_text()))["digest"] == digest:
        return kept["said"], [Path(path) for path in kept["objects"]], kept["seconds"]
    start = time.perf_counter()
    flags = [*nvcc_build.arch_flags(), "-Xptxas", "-v"]
    every = nvcc_build.sources()
    parts = nvcc_build.compile_all(nvcc, every, KEPT / "objects", include_paths(), flags)
    objects = [part.target for part in parts]
    nvcc_build.link(nvcc, objects, KEPT / "_C_cuda.so", library_paths())
    said, seconds = "\n".join(part.said for part in parts), time.perf_counter() - start
    kept = {"digest": digest, "said": said, "objects": [*map(str, objects)], "seconds": seconds}
    record.write_text(json.dumps(kept))
    return said, objects, seconds


def old_torch_problems(nvcc: str) -> list[str]:
    """What of the glue does not compile against the oldest torch; kernels include none."""
    record, digest = KEPT / f"torch-{OLDEST_TORCH}", _digest(nvcc)
    if not record.exists() or record.read_text() != digest:
        try:
            include = [str(headers_of(OLDEST_TORCH))]
            folder = KEPT / f"glue-{OLDEST_TORCH}"
            nvcc_build.compile_all(nvcc, nvcc_build.glue(), folder, include, flags=[])
        except NoHeadersError as error:
            print(f"NOT compiled with torch {OLDEST_TORCH}, whose headers cannot be had: {error}")
            return []
        except RuntimeError as error:
            return [f"with torch {OLDEST_TORCH}: {error}"]
        record.write_text(digest)
    print(f"the glue compiles with torch {OLDEST_TORCH} too")
    return []


def _digest(nvcc: str) -> str:
    digest = hashlib.sha256((nvcc + str(nvcc_build.arch_flags())).encode())
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file() and "kernels/cpu" not in str(path) and "__pycache__" not in path.parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def tensor_core_problems(objects: list[Path], kernels: list[Kernel]) -> list[str]:
    """Kernels named for an instruction whose code does not hold it."""
    dump, what = disassembler()
    problems = []
    for (word, arch), names in TENSOR_CORES.items():
        wanted = {k.name for k in kernels if f"_{word}_" in k.name and k.arch == arch}
        if not wanted:
            problems.append(f"there is no kernel named {word} for {arch}")
            continue
        code = dump(objects, word, arch)
        problems += [
            f"{name} on {arch} holds no {names[what == 'PTX']}"
            for name in sorted(wanted)
            if names[what == "PTX"] not in code.get(name, "")
        ]
    print(f"tensor cores: looked for in the {what}")
    return problems


def disassembler():
    """A function that gives each kernel's code, and whether that is SASS or PTX."""
    beside = Path(nvcc_build.find_nvcc() or "").parent / "cuobjdump"
    places = [shutil.which("cuobjdump"), shutil.which(str(beside)), _of_triton()]
    tool = next((place for place in places if place), None)
    if tool is not None:
        return (lambda objects, word, arch: _sass(tool, objects, word, arch)), "SASS"
    return _ptx, "PTX"


def _of_triton() -> str | None:
    import importlib.util

    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        return None
    return shutil.which(str(Path(found.origin).parent / "backends/nvidia/bin/cuobjdump"))


def _sass(tool: str, objects: list[Path], word: str, arch: str) -> dict[str, str]:
    code: dict[str, str] = {}
    for target in objects:
        if f"_{word}" not in target.stem:
            continue
        command = [tool, "--dump-sass", f"--gpu-architecture={arch}", str(target)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for part in text.split("Function : ")[1:]:
            code[readable(part.split(None, 1)[0])] = part
    return code


def _ptx(objects: list[Path], word: str, arch: str) -> dict[str, str]:
    """Compiled again, to PTX: a source of each word."""
    code: dict[str, str] = {}
    nvcc, number = nvcc_build.find_nvcc(), arch.removeprefix("sm_")
    for source in nvcc_build.sources():
        if f"_{word}" not in source.stem:
            continue
        target = KEPT / f"{source.stem}-{number}.ptx"
        if not target.exists() or target.stat().st_mtime < (KEPT / "record.json").stat().st_mtime:
            command = [nvcc, "-ptx", str(source), "-o", str(target), *nvcc_build.FLAGS]
            command += [f"-I{ROOT / 'csrc'}", f"-arch=compute_{number}"]
            subprocess.run(command, check=True)
        for part in target.read_text().split(".entry ")[1:]:
            code[readable(part.split("(", 1)[0])] = part
    return code


@functools.cache
def readable(name: str) -> str:
    """A kernel's name as it is written; the mangled one is another in each compilation."""
    text = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip()
    text = re.sub(r"\(anonymous namespace\)::|rome_fast::|^void ", "", text)
    return text.split("(")[0]


if __name__ == "__main__":
    sys.exit(main())
