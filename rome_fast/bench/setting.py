"""The commit, machine and versions of a benchmark, which are part of every result."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rome_fast.info import info


def setting() -> dict[str, Any]:
    """Commit, machine and versions, JSON-able; the commit is None outside a checkout."""
    facts = info()
    return {
        "commit": commit(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "threads": facts["threads"],
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "build": facts["build"],
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """Commit of the checkout that tracks this file, with a plus where files differ from it."""
    # An installed copy may lie inside somebody else's repository: there it is not tracked.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", ":/") or ""
    ours = [line for line in changed.splitlines() if "/results/" not in line]
    return None if head is None else head.strip() + ("+" if ours else "")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_name() -> str:
    """The processor's model name, where the system tells it."""
    facts = Path("/proc/cpuinfo")
    for line in facts.read_text().splitlines() if facts.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
