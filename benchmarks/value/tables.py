"""What searches for v* cost and what their edits are worth, as a table of markdown."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.support.tables import Columns, Row, read, table


def _percent(name: str) -> Callable[[Row], str]:
    return lambda r: f"{100 * r[name]:.1f}" if name in r else ""


def _beyond(name: str) -> Callable[[Row], str]:
    """The interval of the paired difference to the first line."""

    def shown(row: Row) -> str:
        if "from_base" not in row:
            return ""
        low, high = row["from_base"][name]
        return f"{100 * low:+.1f} to {100 * high:+.1f}"

    return shown


SEARCHES: Columns = {
    "passes": lambda r: f"{r['medians']['passes']:.0f}" if "medians" in r else "",
    "rows": lambda r: f"{r['medians']['forward_rows']:.0f}" if "medians" in r else "",
    "s": lambda r: f"{r['mean_seconds']:.1f}" if "mean_seconds" in r else "",
    "rewrite": _percent("ES"),
    "paraphrase": _percent("PS"),
    "neighbours": _percent("NS"),
    "unchanged": _percent("unchanged"),
    "paraphrase, difference": _beyond("PS"),
    "unchanged, difference": _beyond("unchanged"),
    "norm": lambda r: f"{r['medians']['norm']:.3f}" if "medians" in r else "",
}


def searches_table() -> list[str]:
    """Every candidate, the present default first."""
    report = read("value-search")
    rows = [("unedited", report["unedited"]), *report["lines"].items()]
    return table("search", SEARCHES, rows)
