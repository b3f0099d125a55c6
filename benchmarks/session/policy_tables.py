"""Ways to write many edits into one weight as tables of markdown."""

from __future__ import annotations

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


def policy_lines(n: int) -> list[Row]:
    """Of the first order, by what they do to held text."""
    rows = [r for r in read("arena-policies")["lines"] if r["n"] == n and not r["order"]]
    return sorted(rows, key=lambda r: r["kl"])


def policies_table(n: int) -> list[str]:
    """All that were tried with so many edits, by what they do to held text."""
    return table(f"{n} edits", POLICIES, [(r["form"], r) for r in policy_lines(n)])


LAYERS: Columns = {
    name: column for name, column in POLICIES.items() if name not in ("rewrite", "spread")
} | {"spread by layer": lambda r: ", ".join(f"{k}: {v:.2f}" for k, v in r["spreads"].items())}


def several_layers_table() -> list[str]:
    """Edits that are written into several layers each."""
    rows = [(f"{r['n']}, {r['form']}", r) for r in read("policy-layers")["lines"]]
    return table("edits, layers", LAYERS, rows)


def moments_table() -> list[str]:
    """C that knows more of names or of prompts."""
    rows = [(f"{r['n']}, {r['form']}", r) for r in read("policy-moments")["lines"]]
    return table("edits, added to C", POLICIES, rows)


def values_table() -> list[str]:
    """Values searched on the unedited weight, or on the edited one."""
    columns = {**POLICIES, "length": lambda r: f"{r['length']:.2f}"}
    rows = [(f"the {r['form']} weight", r) for r in read("policy-values")["lines"]]
    return table("searched on", columns, rows)
