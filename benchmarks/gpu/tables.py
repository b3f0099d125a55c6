"""What docs/gpu.md and the README show of the reports of `python -m benchmarks.gpu`."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.support.results import RESULTS
from benchmarks.support.tables import Columns, Row, table, times

UNMEASURED = "Nothing has been measured on a GPU yet."
GOAL: Columns = {
    "wanted": lambda r: r["wanted"],
    "reached": lambda r: "" if r["reached"] is None else f"{r['reached']:.3g}",
    "state": lambda r: r["state"],
    "backend": lambda r: r["backend"] or "",
}
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


def gpu_goals() -> list[str]:
    """The goals on every card, or that there is none."""
    lines = [UNMEASURED] * (not gpu_reports())
    for report in gpu_reports():
        lines += table(report["setting"]["gpu"], GOAL, [(g["goal"], g) for g in report["goals"]])
    return lines


def gpu_tables() -> list[str]:
    """The goals, and all that was timed on every card."""
    lines = gpu_goals()
    for report in gpu_reports():
        timed = [row for row in report["rows"] if "beside" in row]
        for part in dict.fromkeys(row["part"] for row in timed):
            rows = [(row["name"], row) for row in timed if row["part"] == part]
            lines += table(f"{report['setting']['gpu']}, {part}", ON_GPU, rows)
    return lines
