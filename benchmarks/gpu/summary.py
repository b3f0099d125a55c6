"""The report of a run: on what it ran, the goals, and every row."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.goals import GOALS
from benchmarks.gpu.rows import RUN, WHOLE_PART, commit_of, latest
from benchmarks.gpu.run import MEASURED, Row
from benchmarks.support.results import RESULTS


def report_of(rows: Sequence[Row], dry_run: bool) -> Row:
    """All that is written."""
    kept = latest(rows)
    setting = next((row for row in kept if row["part"] == "setting" and "torch" in row), {})
    facts = {k: v for k, v in setting.items() if k not in ("part", "name", "state")}
    ends = [row for row in kept if row["name"] == WHOLE_PART]
    # A part that ended as it should has said all in its other rows.
    silent = [row for row in ends if row["state"] == MEASURED]
    shown = [row for row in kept if row["part"] != RUN and row not in silent]
    return {
        "dry_run": dry_run,
        "setting": {**facts, "commit": commit_of(rows) or facts.get("commit")},
        "seconds_of_parts": {row["part"]: row["seconds"] for row in ends if "seconds" in row},
        "goals": [goal.judge([] if dry_run else shown) for goal in GOALS],
        "rows": shown,
    }


def path_of(card: str) -> Path:
    """Where the report of a card lies."""
    return RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', card.lower()).strip('-')}.json"


def write(path: Path, report: Row) -> None:
    """The report, whole or not at all, with every row on a line of its own."""
    rows = ",\n".join(json.dumps(row) for row in report["rows"])
    head = json.dumps({k: v for k, v in report.items() if k != "rows"}, indent=1)
    text = f'{head.removesuffix("}").rstrip()},\n "rows": [\n{rows}\n]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    spare = path.with_suffix(".part")
    spare.write_text(text, encoding="utf-8")
    spare.replace(path)


def brief(row: Row) -> str:
    """A row as a line for whoever watches."""
    if "why" in row and row["state"] != MEASURED:
        return f"{row['state']}: {row['why']}"
    shown = [
        f"{row[key]:g} {key.split('_', 1)[1].replace('_per_s', '/s')}"
        for key in ("median_ms", "median_s")
        if key in row
    ]
    shown += [f"{name} x {other['ratio']:g}" for name, other in row.get("beside", {}).items()]
    shown += [f"{row[k]:g} {k}" for k in ("seconds", "edits_per_s", "gb_per_s") if k in row]
    return ", ".join(shown) or row["state"]


def show(report: Row) -> None:
    """The goals, last: what is at the end of an output is read first."""
    if report["dry_run"]:
        print("dry run: nothing was measured")
    for goal in report["goals"]:
        print(f"{goal['state']:8} {goal['goal']}: {goal['reached']} (wanted {goal['wanted']})")
