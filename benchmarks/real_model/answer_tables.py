"""How answers end, as tables of markdown."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.real_model.tables import SCORES
from benchmarks.support.tables import Columns, Row, read, table

NAMES = {"none": '`"none"`', "auto": '`"auto"`', ".": '`"."`', "eos": '`"eos"`'}


def _share(setting: str, name: str) -> Callable[[Row], str]:
    return lambda r: f"{100 * r['answers'][setting][name]:.0f}"


ENDS: Columns = {
    **SCORES,
    "said": _share("completion", "truncated"),
    "... and no more": _share("completion", "natural"),
    "asked: said": _share("question", "truncated"),
    "asked: ... and no more": _share("question", "natural"),
    "chat: in the answer": _share("chat", "contained"),
    "steps": lambda r: f"{r['steps']:.1f}" if "steps" in r else "",
}


def ends_table() -> list[str]:
    """Each kind of end, beside the unedited model."""
    report = read("real-model-ends")
    rows = [("unedited", report["unedited"])]
    rows += [(NAMES[line["way"]], line) for line in report["lines"]]
    return table("end", ENDS, rows)
