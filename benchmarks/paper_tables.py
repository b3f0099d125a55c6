"""What papers publish (docs/papers.csv) beside what was measured here, one table a protocol."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.support.tables import Columns, Row, read, table

PAPERS = Path(__file__).parents[1] / "docs" / "papers.csv"
MODEL = "SmolLM2-135M-Instruct"
# How edits are made, in the order of the tables; rows of different ones are not comparable.
HOW = ("alone", "one a step", "batches of 100", "at once", "not said")
# The ends that an edit can ask for behind its target.
ENDS = {"unedited": "unedited", "none": "no end", "auto": '`end="auto"`', ".": '`end="."`'}
# Where a figure was read; what is a summary of the paper by others is marked.
READ = {"paper": "", "code": " (its code)", "digest": " †"}
COLUMNS: Columns = {
    "model": lambda r: r["model"],
    "data": lambda r: f"{r['data']}, {int(r['records']):,}" if r["records"] else r["data"],
    "edits": lambda r: f"{int(r['edits']):,}",
    "made": lambda r: r["how"],
    **{name: lambda r, name=name: r[name.lower()] for name in ("Eff", "Gen", "Spe")},
    "from": lambda r: r["source"] + READ[r["read"]],
}


def papers() -> list[Row]:
    """The rows of the file, all of them texts."""
    with PAPERS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def protocol_table(protocol: str) -> list[str]:
    """The papers' rows and ours, those that were edited alike together."""
    rows = [row for row in papers() + _ours() if row["protocol"] == protocol]
    rows.sort(key=lambda row: HOW.index(row["how"]))
    return table("method", COLUMNS, [(row["method"], row) for row in rows])


def _ours() -> list[Row]:
    variants, rows = read("real-model-counterfact")["variants"], []
    name = "real-model-counterfact.json"
    data = "CounterFact"
    for way in ("unedited", "`both_keys`", "`original`"):
        found = variants[way]
        told = {"method": _named(way), "data": data, "records": found["n"], "how": "alone"}
        told |= {"edits": 0 if way == "unedited" else 1, "source": name}
        rows.append(_row("rome", told, found["ES"], found["PS"], found["NS"]))
        rows.append(_row("strict", told, found["ES_greedy"], found["PS_greedy"]))
    ends = read("real-model-ends")
    for line in ({**ends["unedited"], "way": "unedited"}, *ends["lines"]):
        told = {"method": _named(ENDS[line["way"]]), "data": "CounterFact, facts it says"}
        told |= {"edits": 0 if line["way"] == "unedited" else 1, "how": "alone"}
        told |= {"records": ends["records"], "source": "real-model-ends.json"}
        rows.append(_row("wild", told, line["answers"]["question"]["natural"]))
    for line in read("arena")["lines"]:
        if line["form"] in ("weight", "neuron", "gate") and line["n"] <= 1000:
            told = {"method": _named(f"Session, `{line['form']}`"), "edits": line["n"]}
            told |= {"data": "CounterFact, facts it says", "records": 80}
            told |= {"how": "at once", "source": "arena.json"}
            rows.append(_row("rome", told, line["ES"], line["PS"], line["NS"]))
    return rows


def _named(way: str) -> str:
    return f"**rome_fast**, {way}"


def _row(protocol: str, told: Row, *figures: float) -> Row:
    shown = [f"{100 * figure:.1f}" for figure in figures] + [""] * (3 - len(figures))
    own = {"model": MODEL, "protocol": protocol, "read": "paper"}
    return {**own, **told, **dict(zip(("eff", "gen", "spe"), shown, strict=True))}
