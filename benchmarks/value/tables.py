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


THROUGHPUT: Columns = {
    "edits": lambda r: f"{r['n']}",
    "seconds per edit": lambda r: f"{r['seconds']:.2f}",
    "kmeng01 / this": lambda r: f"{r['times']:.1f}",
    "of all rounds": lambda r: ", ".join(f"{x:.1f}" for x in r["times_of_all_rounds"]),
    "said at the end": lambda r: f"{100 * r['hold']:.0f}" if "hold" in r else "",
}


def searches_table(name: str) -> list[str]:
    """Every candidate of a study, the reference's search first."""
    report = read(name)
    rows = [("unedited", report["unedited"]), *report["lines"].items()]
    return table("search", SEARCHES, rows)


def throughput_table() -> list[str]:
    """Ways to make many edits, beside kmeng01's own code."""
    return table("way", THROUGHPUT, list(read("throughput")["ways"].items()))
