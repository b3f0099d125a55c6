"""The arena's lines as tables of markdown, and the figure of neighbours against edits.

    python -m benchmarks.session.arena_tables docs/figures/arena.svg

The grey marks are what others have published, on other models and with other measures of their own
(their sources are in docs/forms.md): they say how the curves of the field run, not who is better.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.real_model.tables import SCORES
from benchmarks.support.tables import Columns, read, table

COLUMNS: Columns = {
    "holds": lambda r: f"{100 * r['holds']:.1f}" if r.get("holds") else "",
    **{name: SCORES[name] for name in ("rewrite", "paraphrase")},
    "greedy": lambda r: f"{100 * r['PS_greedy']:.1f}",
    "neighbours": lambda r: f"{100 * r['NS_untouched']:.1f}",
    "unchanged": lambda r: f"{100 * r['unchanged_untouched']:.1f}",
    "perplexity": lambda r: f"{r.get('perplexity', 1):.4f}",
    "heard": lambda r: f"{r['heard']:.4f}" if r.get("heard") else "",
}
# Specificity on CounterFact after so many edits of Llama 3 8B, in percent (unedited: 89.5): the
# AlphaEdit paper (arXiv 2410.02355), and for 10,000 edits NeuralDB's (arXiv 2507.18028).
PUBLISHED = (("AlphaEdit", 2000, 67.9), ("AlphaEdit", 10000, 54.0), ("NeuralDB", 10000, 85.6))


def _name(row: dict[str, Any]) -> str:
    return row["form"] if row["form"] in ("unedited", "weight, each alone") else f"`{row['form']}`"


def arena_table() -> list[str]:
    """All lines at the default layer, by number of edits."""
    lines = sorted(read("arena")["lines"], key=lambda row: row["n"])
    rows = [(f"{row['n']} {_name(row)}", row) for row in lines if row["n"] != 1]
    alone = [(_name(row), row) for row in lines if row["form"] == "weight, each alone"]
    return table("edits, form", COLUMNS, [*rows[:1], *alone, *rows[1:]])


def draw(path: Path) -> None:
    """Neighbours of untouched subjects, and perplexity, against the number of edits."""
    from matplotlib.figure import Figure

    lines = read("arena")["lines"]
    unedited = next(row for row in lines if row["form"] == "unedited")
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.axhline(100 * unedited["NS_untouched"], color="black", lw=0.8, ls=":", label="unedited")
    for form in ("weight", "neuron", "gate"):
        rows = sorted((r for r in lines if r["form"] == form), key=lambda row: row["n"])
        sizes = [row["n"] for row in rows]
        above.plot(sizes, [100 * r["NS_untouched"] for r in rows], marker="o", ms=4, label=form)
        below.plot(sizes, [r["perplexity"] for r in rows], marker="o", ms=4, label=form)
    for name, n, share in PUBLISHED:
        above.plot([n], [share], marker="x", color="grey")
        above.annotate(f" {name}", (n, share), color="grey", fontsize=8)
    above.set_ylabel("neighbours, percent")
    above.legend(fontsize=8)
    below.set_ylabel("perplexity, relative")
    below.set_yscale("log")
    below.set_xscale("log")
    below.set_xlabel("edits")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
