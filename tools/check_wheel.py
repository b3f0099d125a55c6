"""Checks a wheel as its users meet it: its name, and an edit in an empty environment a torch.

    python tools/check_wheel.py dist/rome_fast-*.whl --torch 2.10.0 2.13.0

Every torch gets a new virtual environment, with the versions of constraints.txt for all else. There
the embedded model is edited, which has to work, natively, and be undone to the bit. The library of
CUDA kernels, where the wheel has one, has to open beside that torch and to register every op; a
library of ours stands in for the one function that a torch without CUDA has not.

PyPI's torch is the CUDA build, of several gigabytes; where pip knows a CPU build it takes that.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "csrc"))

import nvcc_build  # noqa: E402

NAME = re.compile(r"rome_fast-[\w.]+(?P<cuda>-1cu\d+)?-cp310-abi3-manylinux_\d+_\d+_x86_64\.whl")
LIBRARIES = {"rome_fast/_C.abi3.so", "rome_fast/_facts.abi3.so"}
CUDA_LIBRARY = "rome_fast/_C_cuda.abi3.so"

# Runs in the environment, in an empty folder: nothing of this checkout is in reach.
EDIT = """
import hashlib, json
import torch, rome_fast
from rome_fast.info import info

def digest(model):
    found = hashlib.sha256()
    for weight in model.parameters():
        found.update(weight.detach().numpy().tobytes())
    return found.hexdigest()

facts = info()
model, tok, _ = rome_fast.demo.load()
request = {"prompt": "{} plays the", "subject": "Ray Charles", "target_new": "violin"}
before = digest(model)
result = rome_fast.edit(model, tok, request)
edited = digest(model)
result.revert()
print(json.dumps({
    "torch": torch.__version__,
    "where": rome_fast.__file__,
    "why_not_native": facts["native_library"]["why_not"],
    "build": facts["build"],
    "success": result.success,
    "backend": result.backend,
    "changed": edited != before,
    "undone": digest(model) == before,
    "why_not_cuda": facts["cuda_library"]["why_not"],
}))
"""

# Runs there too, where the wheel has CUDA kernels: prints the ops that have none.
OPEN = """
import ctypes, sys
import torch, rome_fast
from rome_fast.info import OPS
from rome_fast.ops import _native

if torch.version.cuda is None:
    ctypes.CDLL(sys.argv[1])
torch.ops.load_library(str(_native.find_library("cuda")))
print(*(op for op in OPS if not _native.has(op, "cuda")))
"""


def problems_of_name(wheel: Path) -> list[str]:
    """What is wrong with the tag, or with the libraries inside."""
    found = []
    if not NAME.fullmatch(wheel.name):
        found.append(f"{wheel.name} is no cp310-abi3 wheel for manylinux")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".so" in name}
    wanted = LIBRARIES | ({CUDA_LIBRARY} if has_cuda(wheel) else set())
    if inside != wanted:
        found.append(f"it holds {sorted(inside)} and not {sorted(wanted)}")
    return found


def has_cuda(wheel: Path) -> bool:
    """Whether it is called a wheel with CUDA kernels."""
    match = NAME.fullmatch(wheel.name)
    return match is not None and match["cuda"] is not None


def problems_of_edit(facts: dict[str, Any], folder: Path) -> list[str]:
    """What is wrong with what EDIT has printed."""
    wanted = {
        "the edit went through": facts["success"],
        f"native, and not {facts['backend']} ({facts['why_not_native']})": facts["backend"]
        == "native",
        "the weights were changed": facts["changed"],
        "the weights are as before": facts["undone"],
        "the build's facts are known": facts["build"],
        f"it was the installed one, not {facts['where']}": folder in Path(facts["where"]).parents,
        f"every op has a CUDA kernel, but {facts['without_cuda']}": not facts["without_cuda"],
    }
    return [f"not so: {what}" for what, holds in wanted.items() if not holds]


def edit_with(wheel: Path, torch: str, folder: Path) -> dict[str, Any]:
    """Install the wheel and a torch into a new environment, and run EDIT there."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    others = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(line for line in others if not line.startswith("torch==")))
    # -I: with a PYTHONPATH into a checkout pip would find the package installed already.
    pip = [python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", constraints, f"torch=={torch}", wheel], check=True)
    empty = folder / "empty"
    empty.mkdir()

    def printed(code: str, *arguments: str) -> str:
        command = [python, "-I", "-c", code, *arguments]
        # An empty cache too: the second moment is summed, not read.
        environment = {**os.environ, "XDG_CACHE_HOME": str(empty)}
        done = subprocess.run(
            command, cwd=empty, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.splitlines()[-1]

    facts: dict[str, Any] = json.loads(printed(EDIT))
    facts["without_cuda"] = ""
    if has_cuda(wheel):
        nvcc = nvcc_build.find_nvcc()
        stand_in = nvcc_build.stand_in_for_torch_cuda(nvcc, folder / "stand_in")
        facts["without_cuda"] = printed(OPEN, str(stand_in / "libtorch_cuda.so"))
    return facts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", nargs="+", default=[], metavar="VERSION")
    args = parser.parse_args(arguments)
    wheel = args.wheel.resolve()
    found = problems_of_name(wheel)
    for torch in args.torch:
        with tempfile.TemporaryDirectory() as folder:
            facts = edit_with(wheel, torch, Path(folder).resolve())
            wrong = problems_of_edit(facts, Path(folder).resolve())
        found += [f"torch {torch}: {problem}" for problem in wrong]
        state = "NOT as it should" if wrong else "edited natively, undone to the bit"
        print(f"torch {facts['torch']}: {state} ({facts['build']})", flush=True)
        print(f"  CUDA library: {facts['why_not_cuda'] or 'loaded'}", flush=True)
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    if not found:
        print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
