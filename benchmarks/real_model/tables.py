"""The tables of the studies on the real model, as lines of markdown."""

from __future__ import annotations

from benchmarks.support.tables import Columns, read, table

KEYS: Columns = {
    "keys / d": lambda r: f"{r['keys_per_dim']}" if r["keys_per_dim"] else "",
    "ridge": lambda r: (
        "" if r["ridge"] is None else ("auto, " * (r["shrinkage"] == "auto") + f"{r['ridge']:.2g}")
    ),
    "rewrite": lambda r: f"{100 * r['ES']:.0f}",
    "paraphrase": lambda r: f"{100 * r['PS']:.0f}",
    "neighbours": lambda r: f"{100 * r['NS']:.1f}",
    "unchanged": lambda r: f"{100 * r['unchanged']:.1f}",
    "neighbours beyond C = I": lambda r: "{:+.1f} to {:+.1f}".format(
        *(100 * x for x in r["NS_beyond_identity"])
    ),
    "norm": lambda r: f"{r['norm']:.3f}",
    "leak": lambda r: f"{r['leak']:.3f}",
    "drift, 10⁻³": lambda r: "" if r["drift"] is None else f"{1000 * r['drift']:.1f}",
}
FIRST: Columns = {
    "n": lambda r: f"{r['n']}",
    "bare prompt": lambda r: f"{100 * r['bare']:.0f}",
    "in contexts": lambda r: f"{100 * r['in contexts']:.0f}",
    "other subjects unchanged": lambda r: f"{100 * r['others']:.0f}",
    "other beginnings unchanged": lambda r: f"{100 * r['elsewhere']:.0f}",
    "norm": lambda r: f"{r['norm']:.3f}",
}


def keys_table(layer: int) -> list[str]:
    """Every second moment of the study, the unedited model's neighbours in the head."""
    report = read(f"real-model-keys-layer{layer}")
    rows = [(cell["source"], cell) for cell in report["cells"]]
    return table(f"layer {layer}, text of C", KEYS, rows)


def first_tokens_table() -> list[str]:
    summary = read("real-model-first-tokens")["summary"]
    return table("subjects that open the prompt", FIRST, list(summary.items()))
