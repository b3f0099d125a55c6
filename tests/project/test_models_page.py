"""docs/models.md is what `make models` has measured: of every family, and nothing gone wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from models_table import ZOO, page  # noqa: E402

REPORTS = [
    json.loads((ROOT / f"benchmarks/results/models-{age}.json").read_text(encoding="utf-8"))
    for age in ("newest", "oldest")
]


def test_the_page_is_what_was_measured():
    assert (ROOT / "docs/models.md").read_text(encoding="utf-8") == page(REPORTS)


def test_every_family_was_measured_and_holds():
    newest, oldest = (report["families"] for report in REPORTS)
    assert set(newest) == {member.name for member in ZOO}
    assert set(oldest) <= set(newest) and len(oldest) > 0.9 * len(newest)
    for row in [*newest.values(), *oldest.values()]:
        assert row["edit"] and row["undo"] and row.get("exact", 0) <= 1e-4
    assert all("exact" in row for row in newest.values())
