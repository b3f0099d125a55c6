"""Markdown tables of committed results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.support.results import RESULTS

Row = dict[str, Any]
Columns = Mapping[str, Callable[[Row], str]]


def times(median: float, quartiles: Sequence[float]) -> str:
    return f"{median:.2f} ({quartiles[0]:.2f}-{quartiles[1]:.2f})" if quartiles else "1"


def beside(row: Row) -> str:
    return times(row["times_beside"], row["times_beside_quartiles"])


def table(first: str, columns: Columns, rows: Sequence[tuple[str, Row]]) -> list[str]:
    """A markdown table as lines."""
    lines = [f"| {first} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows:
        lines.append(f"| {name} | {' | '.join(text(row) for text in columns.values())} |")
    return lines


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
