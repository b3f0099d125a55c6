"""As many threads as there are idle cores: two jobs that both take all of them crawl."""

from __future__ import annotations

import os

import torch


def spare_busy_cores() -> str:
    """Take the cores that the load of the last minute leaves, unless OMP_NUM_THREADS is set.

    Threads of one step wait for each other: where another job has a core, all wait for that one.

    Returns:
        What was done, for the user; "" where nothing was.
    """
    if "OMP_NUM_THREADS" in os.environ or not hasattr(os, "getloadavg"):
        return ""
    n_threads, n_busy = torch.get_num_threads(), round(os.getloadavg()[0])
    n_idle = max(1, (os.cpu_count() or 1) - n_busy)
    if n_idle >= n_threads:
        return ""
    torch.set_num_threads(n_idle)
    return (
        f"other jobs keep {n_busy} cores busy: {n_idle} of {n_threads} threads are used, which "
        "is faster; OMP_NUM_THREADS says otherwise"
    )
