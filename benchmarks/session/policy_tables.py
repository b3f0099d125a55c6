"""Ways to write many edits into one weight as tables of markdown; what their spread foretells."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.support.tables import Columns, Row, read, table

POLICIES: Columns = {
    "holds": lambda r: f"{100 * r['holds']:.1f}",
    "rewrite": lambda r: f"{100 * r['ES']:.1f}",
    "paraphrase": lambda r: f"{100 * r['PS']:.1f}",
    "neighbours": lambda r: f"{100 * r['NS_untouched']:.1f}",
    "unchanged": lambda r: f"{100 * r['unchanged_untouched']:.1f}",
    "perplexity": lambda r: f"{r['perplexity']:.3f}",
    "KL": lambda r: f"{r['kl']:.3f}",
    "spread": lambda r: f"{r['spread']:.2f}" if "spread" in r else "",
}


def _lines(n: int) -> list[Row]:
    rows = [r for r in read("arena-policies")["lines"] if r["n"] == n and not r["order"]]
    return sorted(rows, key=lambda r: r["kl"])


def policies_table(n: int) -> list[str]:
    """All that were tried with so many edits, by what they do to held text."""
    return table(f"{n} edits", POLICIES, [(r["form"], r) for r in _lines(n)])


def draw(path: Path) -> None:
    """KL and perplexity of held text against the spread, each policy a mark."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for n, marker in ((80, "o"), (300, "s")):
        rows = [r for r in _lines(n) if "spread" in r]
        for axis, name in zip(axes, ("kl", "perplexity"), strict=True):
            spreads = [r["spread"] for r in rows]
            axis.plot(spreads, [r[name] for r in rows], marker, ms=4, label=f"{n} edits")
            axis.set_xlabel("spread")
            axis.set_xscale("log")
    axes[0].set_ylabel("KL, nats")
    axes[0].set_yscale("log")
    axes[1].set_ylabel("perplexity, relative")
    axes[0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
