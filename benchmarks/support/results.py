"""Where results lie, and how they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# Tokenizers and models that are used where they lie beside the checkout.
SHARED = ROOT.parent / "shared" / "data"


def write(
    path: Path, report: dict[str, Any], rows: list[dict[str, Any]], name: str = "edits_one_by_one"
) -> None:
    """The report, and under ``name`` every row on a line of its own."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    head = json.dumps(report, indent=1).removesuffix("\n}")
    path.write_text(f'{head},\n "{name}": [\n{lines}\n]\n}}\n')
