"""As many threads as there are idle cores: two jobs that both take all of them crawl."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import torch

_LOAD = Path("/proc/loadavg")
# The load average of a minute still counts a job that has just ended, such as an installation.
_LOOKS, _BETWEEN = 7, 0.02


def spare_busy_cores() -> str:
    """Take the cores that other jobs leave at this moment, unless OMP_NUM_THREADS is set.

    Threads of one step wait for each other: where another job has a core, all wait for that one.
    Known on Linux only.

    Returns:
        What was done, for the user; "" where nothing was.
    """
    if "OMP_NUM_THREADS" in os.environ or not _LOAD.exists():
        return ""
    n_threads, n_busy = torch.get_num_threads(), _n_busy()
    n_idle = max(1, (os.cpu_count() or 1) - n_busy)
    if n_idle >= n_threads:
        return ""
    torch.set_num_threads(n_idle)
    return (
        f"other jobs keep {n_busy} cores busy: {n_idle} of {n_threads} threads are used, which "
        "is faster; OMP_NUM_THREADS says otherwise"
    )


def _n_busy() -> int:
    """Threads of other processes that run or wait for a core, the median of a few looks."""
    found = []
    for _ in range(_LOOKS):
        time.sleep(_BETWEEN)
        running = _LOAD.read_text(encoding="ascii").split()[3].split("/")[0]
        found.append(int(running) - 1)  # without the one that reads
    return round(statistics.median(found))
