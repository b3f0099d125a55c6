"""What a part is given, and how its rows are kept: each is written down as soon as it is known."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Row = dict[str, Any]
MEASURED, MISMATCH, FAILED = "measured", "mismatch", "failed"
SKIPPED, NOT_RUN = "skipped", "not run"


class MismatchError(Exception):
    """What was to be timed does not compute what it should."""


class SkipError(Exception):
    """Something is not there; the message names it."""


class DeviceLostError(Exception):
    """The device answers this process no more: what is left needs another one."""


@dataclass(frozen=True)
class Run:
    """One run of one part.

    Attributes:
        device: a GPU, or in a dry run the CPU.
        small: miniature sizes under the names of the real ones; what is measured means nothing.
        deadline: of time.monotonic().
        sink: takes every row.
        done: names of rows that are there already.
    """

    part: str
    device: torch.device
    small: bool
    deadline: float
    sink: Callable[[Row], None]
    done: frozenset[str] = frozenset()

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def wants(self, name: str) -> bool:
        """Whether the row is not there yet."""
        return name not in self.done

    def keep(self, name: str, state: str = MEASURED, **facts: Any) -> None:
        self.sink({"part": self.part, "name": name, "state": state, **facts})

    def attempt(self, name: str, function: Callable[..., Row], *args: Any) -> None:
        """Keep what a function returns as the row ``name``, or why it returned nothing.

        Raises:
            DeviceLostError: the function has ended all use of the device in this process.
        """
        if not self.wants(name):
            return
        if self.seconds_left <= 0:
            self.keep(name, NOT_RUN, why="the time of this part was over")
            return
        try:
            facts = function(self, *args)
        except Exception as error:
            state, why = outcome_of(error), said(error)
        else:
            self.keep(name, **facts)
            return
        # Outside of the handler, whose traceback keeps the tensors of the attempt alive.
        self.keep(name, state, why=why)
        gc.collect()
        if state == FAILED and torch.cuda.is_initialized():
            self._clear(name)

    def _clear(self, name: str) -> None:
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise DeviceLostError(f"by {name}: {said(error)}") from error

    def pick(self, real: Any, small: Any) -> Any:
        """A size of the real run, or of the dry one."""
        return small if self.small else real


def outcome_of(error: BaseException) -> str:
    """The state of a row that an exception ended."""
    return {MismatchError: MISMATCH, SkipError: SKIPPED}.get(type(error), FAILED)


def said(error: BaseException) -> str:
    """An exception as a line of a row; torch's are pages long."""
    kind = "" if isinstance(error, MismatchError | SkipError) else f"{type(error).__name__}: "
    return (kind + " ".join(str(error).split()))[:600]
