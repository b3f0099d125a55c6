"""The tables of the loss and of the output head."""

from __future__ import annotations

from benchmarks.support.tables import Columns, Row, beside, read, table, times

LOSS: Columns = {
    "native, ms": lambda r: f"{r['native']['median_ms']:.1f}",
    "native / autograd": lambda r: beside(r["native"]),
    "torch, ms": lambda r: f"{r['torch']['median_ms']:.1f}",
    "torch / autograd": lambda r: beside(r["torch"]),
}
HEAD: Columns = {
    "logits, ms": lambda r: f"{r['forward_ms']:.0f}",
    "loss, ms": lambda r: f"{r['loss_ms']:.1f}",
    "back, ms": lambda r: f"{r['backward_ms']:.0f}",
    "reading, ms": lambda r: f"{r['read_ms']:.0f}",
    "twice / once, 1,024 words": lambda r: times(r["times_1024"], r["times_1024_quartiles"]),
    "4,096 words": lambda r: times(r["times_4096"], r["times_4096_quartiles"]),
}


def loss_table() -> list[str]:
    """`value_loss` beside autograd, by vocabulary and dtype."""
    cases: dict[str, Row] = {}
    for row in read("value-loss-cpu")["results"]:
        name = f"{row['vocabulary']:,}, {row['dtype']}"
        cases.setdefault(name, {})[row["impl"]] = row
    return table("vocabulary, dtype", LOSS, list(cases.items()))


def head_table() -> list[str]:
    """The head read twice a step, in its parts, and what once would be beside it; one thread."""
    rows = [row for row in read("value-loss-head-cpu")["results"] if row["threads"] == 1]
    named = [(f"{r['vocabulary']:,}, {r['d']:,}, {r['dtype']}, {r['n_reads']}", r) for r in rows]
    return table("vocabulary, d, dtype, reads", HEAD, named)
