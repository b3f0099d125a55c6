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


def _ratios(row: Row, name: str) -> str:
    """The median of the rounds, and the least and most."""
    of_all = row[f"{name}_of_all_rounds"]
    return f"{row[name]:.1f} ({min(of_all):.1f}-{max(of_all):.1f})"


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
    "kmeng01's 21 contexts / this": lambda r: _ratios(r, "times"),
    "kmeng01's in these contexts / this": lambda r: _ratios(r, "times_same_contexts"),
    "said at the end": lambda r: f"{100 * r['hold']:.0f}" if "hold" in r else "",
}


def searches_table(name: str) -> list[str]:
    """Every candidate of a study, the reference's search first."""
    report = read(name)
    rows = [("unedited", report["unedited"]), *report["lines"].items()]
    return table("search", SEARCHES, rows)


def in_sequence_table() -> list[str]:
    """What is left of everything after many edits in one weight."""
    columns: Columns = {
        "rewrite": _percent("ES"),
        "paraphrase": _percent("PS"),
        "neighbours": _percent("NS"),
        "unchanged": _percent("unchanged"),
        "perplexity": lambda r: f"{r['perplexity']:.3f}",
        "norm": lambda r: f"{r['norm']:.2f}",
    }
    report = read("value-sequence")
    return table(f"after {report['records']} edits", columns, list(report["ways"].items()))


def throughput_table() -> list[str]:
    """Ways to make many edits, beside kmeng01's own code."""
    return table("way", THROUGHPUT, list(read("throughput")["ways"].items()))


def throughput_in_readme() -> list[str]:
    """The rows and columns of the same that the README has room for."""
    left_out = (
        *("edits", "said at the end"),
        *("edit_many, exact", "edit_many, independent, two processes"),
    )
    columns = {name: column for name, column in THROUGHPUT.items() if name not in left_out}
    rows = [(way, r) for way, r in read("throughput")["ways"].items() if way not in left_out]
    return table("way", columns, rows)
