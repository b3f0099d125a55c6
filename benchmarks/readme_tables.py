"""Prints the README's tables of speed from the committed results; a test compares the two.

python benchmarks/readme_tables.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]

# What a row of the table of speed says: title, and the text of a row of edit-cpu.json.
SPEED: dict[str, Callable[[Row], str]] = {
    "seconds": lambda r: f"{r['seconds_median']:.2f}",
    "times rome_fast": lambda r: times(r["times_rome_fast"], r["times_rome_fast_quartiles"]),
    "peak MiB": lambda r: f"{r['peak_mib']:,}",
    "cosine of ΔW": lambda r: f"{r['cosine']:.5f}",
}
ORDER: dict[str, Callable[[Row], str]] = {
    "edits/s": lambda r: f"{r['edits_per_second']:.1f}",
    "rewrite": lambda r: f"{r['success_at_end']:.1f}",
    "paraphrase": lambda r: f"{r['paraphrase']:.1f}",
    "neighbours": lambda r: f"{r['neighbours']:.1f}",
    "norm": lambda r: f"{r['relative_norm']:.2f}",
    "cosine to exact": lambda r: f"{r['cosine_to_exact']:.3f}",
}


def times(median: float, quartiles: Sequence[float]) -> str:
    return f"{median:.2f} ({quartiles[0]:.2f}-{quartiles[1]:.2f})" if quartiles else "1"


def table(first: str, columns: dict[str, Callable[[Row], str]], rows: dict[str, Row]) -> list[str]:
    """A markdown table as lines."""
    lines = [f"| {first} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(text(row) for text in columns.values())} |")
    return lines


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def speed_tables() -> dict[str, list[str]]:
    """One a model and layer, the implementations as its rows."""
    rows = [row for row in read("edit-cpu")["results"] if "cosine" in row]
    tables = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = {row["implementation"]: row for row in rows if row["name"] == name}
        tables[name] = table("one edit", SPEED, mine)
    return tables


def order_table() -> list[str]:
    return table("64 edits", ORDER, read("edit-order")["sequences"])


def main() -> None:
    for name, lines in {**speed_tables(), "orders": order_table()}.items():
        print(f"\n{name}\n", *lines, sep="\n")


if __name__ == "__main__":
    main()
