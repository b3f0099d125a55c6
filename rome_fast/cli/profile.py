"""``--profile PATH``: where the time of an edit goes, as a trace for a browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer

ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        help="new file for a Chrome trace of the edit (chrome://tracing, ui.perfetto.dev)",
    ),
]


@contextmanager
def profiled(path: Path | None) -> Iterator[None]:
    """Trace the block, on the GPU too where there is one, and write ``path`` at its end.

    None traces nothing; nor is anything written when the block raises.
    """
    if path is None:
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as trace:
        yield
    trace.export_chrome_trace(str(path))
