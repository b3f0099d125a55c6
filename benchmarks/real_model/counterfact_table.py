"""The table of the README: CounterFact on the real model, this library beside the others' own code.

    python -m benchmarks.real_model.counterfact_table --work FOLDER --records 300 --beside 50 \
        --peer kmeng01=CHECKOUT --peer easyedit=CHECKOUT \
        --out benchmarks/results/real-model-counterfact.json

The first records of the file, each edited alone on the unedited model. Layer, learning rate, steps,
clamp and C are the same for all: rome_fast's defaults. ``original`` searches as the reference does,
in sampled contexts; peers have rome_fast's contexts. The peers, which take minutes, and
rome_fast beside them edit the first of these records in turns, one at a time: that is what seconds
are of. Whatever is found is kept in the folder, so that a run that is cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import rome_fast
from benchmarks.real_model.judging import RealModelJudge, interval, means
from benchmarks.real_model.records import read_counterfact, record_of
from benchmarks.real_model.values import find_values
from rome_fast.bench.case import Case
from rome_fast.bench.peers import load_peer
from rome_fast.bench.setting import setting
from rome_fast.edit import opened
from rome_fast.errors import EditRejectedError
from rome_fast.evaluate.records import EditRecord
from rome_fast.evaluate.scoring import Trial, tried
from rome_fast.hparams import VARIANTS, defaults_for
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.greedy import greedy_continuations
from rome_fast.prompt.ids import text_ids
from rome_fast.types import RankOneUpdate
from rome_fast.update.joint import solve_updates

ANSWER_TOKENS = 20
AT_ONCE = 20

Updates = list[RankOneUpdate | None]
Row = dict[str, Any]


class Bench:
    """The model, and what all implementations share."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.model, self.tok, _ = rome_fast.demo.load("smollm2")
        with opened(self.model, self.tok, None, None, "auto", None, None) as editor:
            self.hparams, self.moment = editor.hparams, editor.second_moment
            self.contexts, self.projection = editor.context_templates, editor.projection
        self.model.requires_grad_(False)
        # With its ridge, which the others are given as it is.
        c = self.moment.moment().double()
        c.diagonal().add_(self.moment.ridge() * c.diagonal().mean())
        self.damped = c

    def own_updates(self, records: Sequence[EditRecord]) -> Iterator[tuple[str, Updates]]:
        """All variants, and the default one with C = I; the same values where the rule is one."""
        original = defaults_for(ModelSpec.of(self.model), variant="original")[0]
        values = {
            hparams.variant: find_values(
                *(self.model, self.tok, records, hparams), self.work / "values", window=4
            )
            for hparams in (self.hparams, original.replace(variant="original"))
        }
        rows = [(f"`{variant}`", variant, self.moment) for variant in VARIANTS]
        default = self.hparams.variant
        for name, variant, moment in [*rows, (f"`{default}`, C = I", default, None)]:
            updates: Updates = []
            for found in values["original" if variant == "original" else default]:
                try:
                    constraint = found.constraint(variant)
                    updates += solve_updates(self.projection, [constraint], moment)
                except EditRejectedError:
                    updates.append(None)
            yield name, updates

    def judged(
        self, records: Sequence[EditRecord], name: str, updates: Updates, judge: RealModelJudge
    ) -> list[Row]:
        """One row a record, with the answer to its natural stop."""
        rows = judge(updates)
        norm = float(self.projection.weight.norm())
        answers = self.answers(records, updates)
        for row, record, update, answer in zip(rows, records, updates, answers, strict=True):
            row |= {"name": name, "answer": answer, "says": says(answer, record.request.target)}
            row["norm"] = None if update is None else update.norm / norm
        return rows

    def answers(self, records: Sequence[EditRecord], updates: Updates) -> list[str]:
        """How the model goes on after each edited prompt, each under its own update."""
        made = [update for update in updates if update is not None]
        places = iter(range(len(made)))
        numbers = [-1 if update is None else next(places) for update in updates]
        prompts = [text_ids(self.tok, record.request.text) for record in records]
        with tried(Trial(self.projection, made, numbers) if made else None, numbers):
            return greedy_continuations(self.model, self.tok, prompts, ANSWER_TOKENS)


def says(answer: str, target: str) -> bool:
    """Whether an answer begins with the target, and goes on with no letter or digit of a word."""
    said = answer.strip()
    return said.startswith(target.strip()) and not said[len(target.strip()) :][:1].isalnum()


def rows_of_variants(bench: Bench, records: Sequence[EditRecord]) -> list[Row]:
    path = bench.work / "counterfact.jsonl"
    rows = _read(path)
    for start in range(0, len(records), AT_ONCE):
        part = records[start : start + AT_ONCE]
        if {record.case_id for record in part} <= {row["case_id"] for row in rows}:
            continue
        judge = RealModelJudge(bench.model, bench.tok, bench.projection, part)
        nothing: Updates = [None] * len(part)
        fresh = bench.judged(part, "unedited", nothing, judge)
        for name, updates in bench.own_updates(part):
            fresh += bench.judged(part, name, updates, judge)
        _append(path, fresh)
        rows += fresh
        print(start + len(part), "records", flush=True)
    wanted = {record.case_id for record in records}
    return [row for row in rows if row["case_id"] in wanted]


def rows_beside_peers(
    bench: Bench, records: Sequence[EditRecord], peers: dict[str, Any]
) -> list[Row]:
    """Each record by rome_fast and by every peer in turns, timed."""
    edits: dict[str, Callable[[EditRecord], tuple[RankOneUpdate | None, float]]] = {
        "rome_fast": lambda record: _own_edit(bench, record),
        **{
            name: lambda record, p=peer: _peer_edit(bench, record, p)
            for name, peer in peers.items()
        },
    }
    path = bench.work / "beside.jsonl"
    rows = _read(path)
    done = {row["case_id"] for row in rows}
    for record in records:
        if record.case_id in done:
            continue
        judge = RealModelJudge(bench.model, bench.tok, bench.projection, [record])
        fresh = []
        for name, edit in edits.items():
            update, seconds = edit(record)
            [row] = bench.judged([record], name, [update], judge)
            fresh.append({**row, "seconds": seconds})
        _append(path, fresh)
        rows += fresh
        print(record.case_id, {row["name"]: round(row["seconds"], 1) for row in fresh}, flush=True)
    wanted = {record.case_id for record in records}
    return [row for row in rows if row["case_id"] in wanted]


def _own_edit(bench: Bench, record: EditRecord) -> tuple[RankOneUpdate | None, float]:
    began = time.perf_counter()
    try:
        result = rome_fast.edit(
            *(bench.model, bench.tok, record.request, bench.hparams),
            second_moment=bench.moment,
            context_templates=bench.contexts,
        )
    except EditRejectedError:
        return None, time.perf_counter() - began
    seconds = time.perf_counter() - began
    result.revert()
    return result.update, seconds


def _peer_edit(bench: Bench, record: EditRecord, peer: Any) -> tuple[RankOneUpdate | None, float]:
    shared = (record.request, bench.hparams, tuple(bench.contexts), bench.damped)
    made = peer.edit(Case(bench.model, bench.tok, *shared))
    layout = bench.projection.weight_layout
    matrix = made.dense if layout == "out_in" else made.dense.T
    row = matrix[int(matrix.norm(dim=1).argmax())]
    u = row / row.norm()
    return RankOneUpdate(u, matrix @ u, layout), made.seconds["total"]


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.open()] if path.exists() else []


def _append(path: Path, rows: Sequence[Row]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def summary(rows: Sequence[Row]) -> Row:
    text = ("name", "answer", "seconds", "norm", "refused")
    figures = [{k: v for k, v in row.items() if k not in text} for row in rows]
    found: Row = {"n": len(rows), **means(figures)}
    found["intervals"] = {
        name: interval(figures, name) for name in ("ES", "PS", "NS", "unchanged", "says")
    }
    norms = [row["norm"] for row in rows if row["norm"] is not None]
    if norms:
        found |= {"norm": statistics.median(norms), "norm_max": max(norms)}
        found["refused"] = len(rows) - len(norms)
    if "seconds" in rows[0]:
        seconds = [row["seconds"] for row in rows]
        found["seconds"] = statistics.median(seconds)
        found["seconds_quartiles"] = statistics.quantiles(seconds, n=4)[::2]
    return found


def by_name(rows: Sequence[Row]) -> dict[str, Row]:
    names = dict.fromkeys(row["name"] for row in rows)
    return {name: summary([row for row in rows if row["name"] == name]) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--beside", type=int, default=50, help="records that peers edit too")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    bench = Bench(args.work)
    records = [record_of(raw) for raw in read_counterfact()[: args.records]]
    variants = rows_of_variants(bench, records)
    peers = {spec.partition("=")[0]: load_peer(spec) for spec in args.peer}
    beside = rows_beside_peers(bench, records[: args.beside], peers) if peers else []
    report = {
        "setting": setting(),
        "threads": torch.get_num_threads(),
        "hparams": vars(bench.hparams),
        "second_moment": str(bench.moment),
        "context_templates": bench.contexts,
        "peers": {name: peer.commit for name, peer in peers.items()},
        "variants": by_name(variants),
        "beside": by_name(beside),
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: report[k] for k in ("variants", "beside")}, indent=1))


if __name__ == "__main__":
    main()
