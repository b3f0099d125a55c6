"""A pytest plugin that writes every outcome down at once, so that a killed run has told its own.

    ROME_FAST_REPORTS=FILE python -m pytest -p benchmarks.gpu.reports ...

A test that was started and has no outcome is the one that hangs, or that ended the process.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def pytest_runtest_logstart(nodeid: str) -> None:
    _note(nodeid, "started")


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or not report.passed:
        why = report.longrepr
        if report.skipped and isinstance(why, tuple):
            why = why[2]
        _note(report.nodeid, report.outcome, str(why or "")[-500:])


def pytest_collectreport(report: Any) -> None:
    if report.failed:
        _note(report.nodeid, "failed", str(report.longrepr)[-500:])


def outcomes(file: Path) -> dict[str, dict[str, str]]:
    """The last outcome of every test in such a file."""
    lines = file.read_text().splitlines() if file.exists() else []
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        report = json.loads(line)
        test, before = report["test"], found.get(report["test"])
        if before is None or before["outcome"] != "failed":  # a teardown may pass after it
            found[test] = report
    return found


def _note(test: str, outcome: str, why: str = "") -> None:
    with open(os.environ["ROME_FAST_REPORTS"], "a") as file:
        file.write(json.dumps({"test": test, "outcome": outcome, "why": why}) + "\n")
