"""``--profile PATH``: where the time of an edit goes, as a trace for a browser."""

from __future__ import annotations

import os
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


def check_profile_path(path: Path | None) -> None:
    """Refuse, before any work, a file that could not be written at its end.

    Raises:
        OSError: the file exists already, or its folder does not or is not writable.
    """
    if path is None:
        return
    folder = path.resolve().parent
    if os.path.lexists(path):
        raise FileExistsError(f"--profile {path} exists: name a new file")
    if not folder.is_dir():
        raise FileNotFoundError(f"--profile {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"--profile {path}: the folder {folder} is not writable")


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
