"""Capability as rows: in the terminal, and for the page of HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rome_fast.evaluate.capability.scores import TaskDifference, Tasks, TaskScore, differences

if TYPE_CHECKING:
    from rich.table import Table

EXPLAINED = "± is the standard error; of a change (paired), half its 95 % interval"


def head(stages: Mapping[str, Tasks]) -> list[str]:
    """The columns' names for ``rows``."""
    return ["task", "metric", *stages, *(["change"] if _both(stages) else []), "samples"]


def rows(stages: Mapping[str, Tasks]) -> list[list[str]]:
    """A row a metric of a task: its value at each stage, the change from the first to the last.

    Args:
        stages: by name, one or two of the same tasks.
    """
    *_, last = stages.values()
    changes = differences(*stages.values()) if _both(stages) else None
    return [
        [
            task,
            name,
            *(_value(of[task][name]) if name in of.get(task, {}) else "" for of in stages.values()),
            *([] if changes is None else [_change(changes.get(task, {}).get(name))]),
            str(score.n),
        ]
        for task, metrics in last.items()
        for name, score in metrics.items()
    ]


def table(stages: Mapping[str, Tasks]) -> Table:
    """The rows for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=EXPLAINED)
    for number, name in enumerate(head(stages)):
        # Names fold before numbers do.
        if number < 2:
            made.add_column(name, overflow="fold")
        else:
            made.add_column(name, justify="right", no_wrap=True)
    for row in rows(stages):
        made.add_row(*map(Text, row))
    return made


def _both(stages: Mapping[str, Tasks]) -> bool:
    return len(stages) == 2


def _value(score: TaskScore) -> str:
    error = "" if score.stderr is None else f" ± {score.stderr:.3f}"
    return f"{score.value:.3f}{error}"


def _change(found: TaskDifference | None) -> str:
    if found is None:
        return ""
    if found.difference is None:
        return f"{found.after - found.before:+.3f}"
    half = found.difference.mean - found.difference.low
    return f"{found.difference.mean:+.3f} ± {half:.3f}"
