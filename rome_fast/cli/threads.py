"""As many threads as there are idle cores: two jobs that both take all of them crawl."""

from __future__ import annotations

import os

from rome_fast.cli.common import complain


def spare_busy_cores() -> None:
    """Take the cores that the load of the last minute leaves, unless OMP_NUM_THREADS is set.

    Threads of one step wait for each other: where another job has a core, all wait for that one.
    """
    if "OMP_NUM_THREADS" in os.environ or not hasattr(os, "getloadavg"):
        return
    import torch

    n_threads, n_busy = torch.get_num_threads(), round(os.getloadavg()[0])
    n_idle = max(1, (os.cpu_count() or 1) - n_busy)
    if n_idle < n_threads:
        torch.set_num_threads(n_idle)
        complain(
            f"other jobs keep {n_busy} cores busy: {n_idle} of {n_threads} threads are used, which "
            "is faster; OMP_NUM_THREADS says otherwise"
        )
