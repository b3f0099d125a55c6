"""Building the library here, and on what everything ran."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from typing import Any

import torch

from benchmarks.gpu.run import Run, SkipError
from benchmarks.gpu.timer import figure
from benchmarks.support.results import ROOT
from rome_fast.bench.setting import setting as setting_of
from rome_fast.ops._native import find_library


def build(run: Run) -> None:
    run.attempt("build", _build)


def setting(run: Run) -> None:
    """Card, driver and versions; a process of its own, since it loads what was just built."""
    run.keep("setting", **_setting(run))


def _build(run: Run) -> dict[str, Any]:
    if run.small:
        raise SkipError("a dry run builds nothing")
    there = find_library("cuda")
    if there is not None and there.stat().st_mtime > newest_source():
        return {"built": [there.name], "before": True}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    environment = {**os.environ, "ROME_FAST_BUILD": "cuda"}
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = figure(time.perf_counter() - begin)
    if done.returncode:
        print(done.stdout[-8000:])
        raise RuntimeError(f"exit {done.returncode} after {seconds} s: {done.stdout[-400:]}")
    built = sorted(path.name for path in (ROOT / "rome_fast").glob("*.so"))
    return {"seconds": seconds, "built": built}


def newest_source() -> float:
    """When a source of the library was changed last."""
    found = (ROOT / "csrc").rglob("*.[chp]*")
    return max(path.stat().st_mtime for path in found if "__pycache__" not in path.parts)


def _setting(run: Run) -> dict[str, Any]:
    facts = {**setting_of(), "cuda": torch.version.cuda, "driver": _driver()}
    if run.device.type == "cuda":
        card = torch.cuda.get_device_properties(run.device)
        facts.update(
            compute_capability=f"{card.major}.{card.minor}",
            multiprocessors=card.multi_processor_count,
            memory_mib=card.total_memory // 2**20,
        )
    return facts


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return said[0] if said else None
