"""What docs/gpu.md and the README show of the reports of `python -m benchmarks.gpu`.

A report whose setting has a note was measured on other code than what lies beside it.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.gpu.goals import WARM
from benchmarks.support.results import RESULTS
from benchmarks.support.tables import Columns, Row, table, times

UNMEASURED = "Nothing has been measured on a GPU yet."
ON_GPU: Columns = {
    "median": lambda r: f"{r['median_s']:.3f} s" if "median_s" in r else f"{r['median_ms']:.3f} ms",
    "beside": lambda r: ", ".join(rivals(r)),
}


def rivals(row: Row) -> list[str]:
    """How many times as long each rival took as what it is compared with, with the quartiles."""
    found = row.get("beside", {}).items()
    return [f"{name} {times(r['ratio'], r['ratio_quartiles'])}" for name, r in found]


def gpu_reports() -> list[Any]:
    """What was measured, a report a card."""
    paths = sorted(RESULTS.glob("gpu-*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def measured_on(report: Row) -> str:
    """The card and the commit."""
    setting = report["setting"]
    before = ", before the present search" if "note" in setting else ""
    return f"{setting['gpu']} ({setting['commit']}{before})"


def gpu_in_readme() -> list[str]:
    """A line a card: one warm edit of every model that has a goal."""
    lines = [UNMEASURED] * (not gpu_reports())
    for report in gpu_reports():
        rows = {(row["part"], row["name"]): row for row in report["rows"]}
        seconds = [
            f"{title} {rows[part, f'warm edit, {precision}']['median_s']:.2f} s in {precision}"
            for part, title, precision, _ in WARM
            if "median_s" in rows.get((part, f"warm edit, {precision}"), {})
        ]
        lines.append(f"One edit on an {measured_on(report)}: {', '.join(seconds)}.")
    return lines


def gpu_goals() -> list[str]:
    """The goals on every card, or that there is none."""
    lines = [UNMEASURED] * (not gpu_reports())
    for report in gpu_reports():
        rows = [(goal["goal"], goal) for goal in report["goals"]]
        lines += table(measured_on(report), goal_columns("note" in report["setting"]), rows)
    return lines


def goal_columns(is_older: bool) -> Columns:
    """What was reached then, and that nothing is known of what has changed since."""
    then, measured = (" then" if is_older else ""), lambda r: r["reached"] is not None
    columns = {
        "wanted": lambda r: r["wanted"],
        f"reached{then}": lambda r: f"{r['reached']:.3g}" if measured(r) else "not measured",
        f"state{then}": lambda r: r["state"] if measured(r) else "",
        "at best, estimated": lambda r: f"{r['at_best']:.3g}" if r["at_best"] else "",
        "estimated from": lambda r: r["estimated_from"],
    }
    return {**columns, "since": lambda r: "not measured"} if is_older else columns


def gpu_tables() -> list[str]:
    """The goals, and all that was timed on every card."""
    lines = gpu_goals()
    for report in gpu_reports():
        timed = [row for row in report["rows"] if "beside" in row]
        for part in dict.fromkeys(row["part"] for row in timed):
            rows = [(row["name"], row) for row in timed if row["part"] == part]
            lines += table(f"{report['setting']['gpu']}, {part}", ON_GPU, rows)
    return lines
