"""The arena's lines as tables of markdown, and the figure of neighbours against edits.

    python -m benchmarks.session.arena_tables docs/figures/arena.svg

The grey marks are what others have published, on other models and with other measures of their own
(their sources are in docs/forms.md): they say how the curves of the field run, not who is better.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.real_model.tables import SCORES
from benchmarks.support.tables import Columns, Row, read, table
from rome_fast.hparams import FORMS

COLUMNS: Columns = {
    "holds": lambda r: f"{100 * r['holds']:.1f}" if "holds" in r else "",
    **{name: SCORES[name] for name in ("rewrite", "paraphrase")},
    "greedy": lambda r: f"{100 * r['PS_greedy']:.1f}",
    "neighbours": lambda r: f"{100 * r['NS_untouched']:.1f}",
    "unchanged": lambda r: f"{100 * r['unchanged_untouched']:.1f}",
    "perplexity": lambda r: f"{r['perplexity']:.4f}" if "perplexity" in r else "",
    "heard": lambda r: f"{r['heard']:.4f}" if "heard" in r and r["form"] != "weight" else "",
}
ASKED: Columns = {
    "answer is the target": lambda r: f"{100 * r['answers']:.1f}",
    "in a chat": lambda r: f"{100 * r['chat']:.1f}",
    "other questions, same answer": lambda r: f"{100 * r['same_subject']:.1f}",
    "KL": lambda r: f"{r.get('kl', 0):.4f}",
}
IN_LAYERS: Columns = {
    **{name: SCORES[name] for name in ("rewrite", "paraphrase")},
    "neighbours": COLUMNS["neighbours"],
    "unchanged": COLUMNS["unchanged"],
    "perplexity": COLUMNS["perplexity"],
    "heard": COLUMNS["heard"],
}
IN_ORDERS: Columns = {k: text for k, text in COLUMNS.items() if k not in ("greedy", "heard")}
DETECTED: Columns = {
    "own prompt": lambda r: f"{100 * r['own prompt']:.0f}",
    "paraphrases": lambda r: f"{100 * r['paraphrases']:.0f}",
    "last word elsewhere": lambda r: f"{100 * r['last word elsewhere']:.0f}",
    "text": lambda r: f"{r['text']:.4f}",
}
COST: Columns = {
    "rows computed, s": lambda r: f"{r['rows_s']:.2f}",
    "tokens/s": lambda r: f"{r['tokens_per_s']:.1f}",
    "of the unedited model's": lambda r: f"{r['share_of_speed']:.3f}",
    "from, to": lambda r: "{:.3f}, {:.3f}".format(*r["share_of_speed_range"]),
}
PLAIN: Columns = {
    "paraphrases": lambda r: f"{r['paraphrase']:.1f}",
    "neighbours": lambda r: f"{r['neighbours']:.1f}",
    "perplexity": lambda r: f"{r['perplexity']:.3f}",
    "last words elsewhere": lambda r: f"{r['company']:.1%}",
}
TAKEN: Columns = {
    "of what the layer writes": lambda r: f"{r['written']:.2%}",
    "perplexity": lambda r: f"{r['perplexity']:.4f}",
    "KL": lambda r: f"{r['kl']:.4f}",
}
# Specificity on CounterFact after so many edits of Llama 3 8B, in percent (unedited: 89.5): the
# AlphaEdit paper (arXiv 2410.02355), and for 10,000 edits NeuralDB's (arXiv 2507.18028).
PUBLISHED = (("AlphaEdit", 2000, 67.9), ("AlphaEdit", 10000, 54.0), ("NeuralDB", 10000, 85.6))


def _name(row: Row) -> str:
    form, *alone = row["form"].split(", ")
    return form if form == "unedited" else ", ".join([f"`{form}`", *alone])


def _lines() -> list[Row]:
    def place(row: Row) -> tuple[int, int]:
        form = row["form"].partition(",")[0]
        return row["n"], ("unedited", *FORMS).index(form)

    return sorted(read("arena")["lines"], key=place)


def arena_table() -> list[str]:
    """All lines at the default layer, by number of edits."""
    rows = [(f"{row['n']} {_name(row)}", row) for row in _lines()]
    return table("edits, form", COLUMNS, rows)


def asked_table() -> list[str]:
    """What else the edited model says."""
    rows = [(f"{row['n']} {_name(row)}", row) for row in _lines() if "chat" in row]
    return table("edits, form", ASKED, rows)


def layers_of_forms_table() -> list[str]:
    """The forms in other layers."""
    report = read("arena-layers")
    rows = [
        (f"{layer} {_name(row)}", row) for layer, lines in report["layers"].items() for row in lines
    ]
    return table("layer, form", IN_LAYERS, [("unedited", report["unedited"]), *rows])


def orders_table() -> list[str]:
    """The same facts in other orders, and some of them edited twice."""
    rows = []
    for row in read("arena-orders")["lines"]:
        again = f", {row['again']} of them twice" if row["again"] else ""
        rows.append((f"{_name(row)}, order {row['order']}{again}", row))
    return table(f"{read('arena-orders')['n']} edits", IN_ORDERS, rows)


def detectors_table() -> list[str]:
    """All detectors where one of fifty neighbours is reached."""
    found = read("detectors")["detectors"]
    return table("what is compared", DETECTED, [(name, row["0.02"]) for name, row in found.items()])


def taken_table() -> list[str]:
    """What silencing units costs."""
    return table("units", TAKEN, [(str(row["taken"]), row) for row in read("taken-units")["rows"]])


def cost_of_forms_table() -> list[str]:
    """What edits beside the MLP cost when they change, and when the model generates."""
    lines = read("forms-speed")["lines"]
    return table("edits, form", COST, [(f"{row['n']} {_name(row)}", row) for row in lines])


def plain_table() -> list[str]:
    """The row of a plain MLP."""
    rows = [(f"{r['w']:g}, {r['share']:g}", r) for r in read("plain-units")["rows"]]
    return table("w, share", PLAIN, rows)


def draw(path: Path) -> None:
    """Neighbours of untouched subjects, and perplexity, against the number of edits."""
    from matplotlib.figure import Figure

    lines = read("arena")["lines"]
    unedited = next(row for row in lines if row["form"] == "unedited")
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.axhline(100 * unedited["NS_untouched"], color="black", lw=0.8, ls=":", label="unedited")
    for form in FORMS:
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
