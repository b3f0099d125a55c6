"""Seconds by phase, and the bar of what takes long."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm


@dataclass
class Timings:
    """Seconds by phase: each ``lap`` adds the time since the last one to its phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


def progress_bar(rows: Iterable[Any] | None = None, *, show: bool, **options: Any) -> tqdm[Any]:
    """A bar in terminals and notebooks; in a file each of its steps would be a line."""
    bar: tqdm[Any] = tqdm(rows, disable=None if show else True, **options)
    return bar
