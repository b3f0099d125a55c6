"""The tables of docs/evaluation.md of figures beside the authors' own code."""

from __future__ import annotations

from benchmarks.support.tables import Columns, Row, read, table

CODES = {"kmeng01": "kmeng01/rome", "easyedit": "EasyEdit", "wild": "WILD"}
AGREEMENT: Columns = {
    "theirs": lambda r: f"{r['theirs']:.4f}",
    "`evaluate`": lambda r: f"{r['evaluate']:.4f}",
    "differ": lambda r: f"{r['differing']} of {r['n']}",
    "by at most": lambda r: "0" if r["largest"] == 0 else f"{r['largest']:.1g}",
}


def agreement_tables() -> list[str]:
    """A table a model: means after the edits, and how many of their values differ on one model."""
    models = read("evaluate-agreement")["models"]
    return [line for name, rows in models.items() for line in table(name, AGREEMENT, _named(rows))]


def _named(rows: list[Row]) -> list[tuple[str, Row]]:
    return [
        (f"`{row['kind']}`, {CODES[row['code']]}", row)
        for row in sorted(rows, key=lambda row: list(CODES).index(row["code"]))
        if row["stage"] == "after" and "evaluate" in row
    ]


def compared(code: str, kind: str) -> dict[str, Row]:
    """By model, over both stages: how many numbers of a kind, how many differ, the largest."""
    found = {}
    for model, rows in read("evaluate-agreement")["models"].items():
        mine = [row for row in rows if (row["code"], row["kind"]) == (code, kind)]
        totals: Row = {name: sum(row[name] for row in mine) for name in ("n", "differing")}
        found[model] = {**totals, "largest": max(row["largest"] for row in mine)}
    return found
