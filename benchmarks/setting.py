"""On what a benchmark ran; every results file says it."""

import os
import platform
import subprocess
from pathlib import Path

import torch

from rome_fast.info import info


def setting() -> dict:
    """Commit, machine and versions, JSON-able."""
    facts = info()
    return {
        "commit": commit(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "threads": facts["threads"],
        "torch": torch.__version__,
        "build": facts["build"],
        "python": platform.python_version(),
    }


def commit() -> str:
    """Of the checkout; with a plus where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
    changed = subprocess.check_output([*git, "status", "--porcelain", "--", ".."], text=True)
    ours = [line for line in changed.splitlines() if "/results/" not in line]
    return head + ("+" if ours else "")


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
