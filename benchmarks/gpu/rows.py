"""The rows of a run, a line of JSON each, in a file that can be read while they come.

A run that is given the file of an earlier one goes on with it: what is measured there stays.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu.run import MEASURED, SKIPPED, Row

# The part of the row that every run begins with, and the name of the row that ends every part.
RUN, WHOLE_PART = "run", "the part"


def append(file: Path, row: Row) -> None:
    """On a line of its own, also behind one that a killed process has left half written."""
    with file.open("a", encoding="utf-8") as rows:
        rows.write(f"\n{json.dumps(row)}\n")


def read(file: Path) -> list[Row]:
    """The rows of a file; half a line is none."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def latest(rows: Sequence[Row]) -> list[Row]:
    """The last of the rows of each part and name."""
    return list({(row["part"], row["name"]): row for row in rows}.values())


def done(rows: Sequence[Row], part: str) -> frozenset[str]:
    """Names of a part that are measured, or that were tried since the last run began."""
    measured, tried = set(), set()
    for row in rows:
        if row["part"] == RUN:
            tried.clear()
        elif row["part"] == part and row["name"] != WHOLE_PART:
            tried.add(row["name"])
            if row["state"] == MEASURED:
                measured.add(row["name"])
    return frozenset(measured | tried)


def is_complete(rows: Sequence[Row], part: str) -> bool:
    """Whether a part came to its end, and with all that it has to measure."""
    states = {row["name"]: row["state"] for row in latest(rows) if row["part"] == part}
    return states.get(WHOLE_PART) == MEASURED and set(states.values()) <= {MEASURED, SKIPPED}


def commit_of(rows: Sequence[Row]) -> str | None:
    """The commit that the last run of these rows was made with."""
    return next((row["commit"] for row in reversed(rows) if row["part"] == RUN), None)
