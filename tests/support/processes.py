"""A test file as two processes of torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_two(file: Path, folder: Path) -> None:
    """Run ``file`` as a program with ``folder`` as its argument; an error if either fails."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(file), str(folder)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
