"""The table of the README: CounterFact on the real model, this library beside the others' own code.

    python -m benchmarks.real_model.counterfact_table --work FOLDER --records 300 \
        --peer kmeng01=CHECKOUT --peer easyedit=CHECKOUT \
        --out benchmarks/results/real-model-counterfact.json

The first records of the file, each edited alone on the unedited model; layer, learning rate, steps,
clamp, contexts and C are the same for all (rome_fast's defaults), and those of "their settings" are
EasyEdit's own for Llama at the same layer. Every edit is a line of ``counterfact.jsonl`` in the
folder, so that a run that is cut off goes on where it was. Seconds are of one edit at a time, all
implementations in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import rome_fast
from benchmarks.real_model.judging import RealModelJudge, interval, means
from benchmarks.real_model.records import read_counterfact, record_of
from rome_fast.bench.case import Case
from rome_fast.bench.peers import load_peer
from rome_fast.bench.setting import setting
from rome_fast.edit import opened
from rome_fast.evaluate.records import EditRecord
from rome_fast.evaluate.scoring import Trial, tried
from rome_fast.hparams import VARIANTS
from rome_fast.prompt.ids import text_ids
from rome_fast.prompt.readback import greedy_continuations
from rome_fast.types import RankOneUpdate

ANSWER_TOKENS = 20
AT_ONCE = 10

# (record) -> the update, and the seconds of the edit
Edit = Callable[[EditRecord], tuple[RankOneUpdate | None, float]]


class Bench:
    """The model, what all implementations share, and what each of them does to a record."""

    def __init__(self, peers: list[str]) -> None:
        self.model, self.tok, _ = rome_fast.demo.load("smollm2")
        with opened(self.model, self.tok, None, None, "auto", None, None) as editor:
            self.hparams, self.moment = editor.hparams, editor.second_moment
            self.contexts, self.projection = editor.context_templates, editor.projection
        self.peers = {name.partition("=")[0]: load_peer(name) for name in peers}
        self.damped = self._damped()

    def _damped(self) -> torch.Tensor:
        """C with its ridge, which the others are given as it is."""
        c = self.moment.moment().double()
        ridge = self.moment.ridge() * c.diagonal().mean()
        return c + ridge * torch.eye(len(c), dtype=c.dtype)

    def implementations(self) -> dict[str, Edit]:
        own: dict[str, Edit] = {
            f"`{variant}`": self._own(variant, self.moment) for variant in VARIANTS
        }
        own[f"`{self.hparams.variant}`, C = I"] = self._own(self.hparams.variant, "identity")
        return {**own, **{name: self._peer(peer) for name, peer in self.peers.items()}}

    def _own(self, variant: str, moment: Any) -> Edit:
        def edit(record: EditRecord) -> tuple[RankOneUpdate | None, float]:
            began = time.perf_counter()
            try:
                result = rome_fast.edit(
                    *(self.model, self.tok, record.request, self.hparams),
                    second_moment=moment,
                    context_templates=self.contexts,
                    variant=variant,
                )
            except rome_fast.errors.EditRejectedError:
                return None, time.perf_counter() - began
            seconds = time.perf_counter() - began
            result.revert()
            return result.update, seconds

        return edit

    def _peer(self, peer: Any) -> Edit:
        def edit(record: EditRecord) -> tuple[RankOneUpdate | None, float]:
            case = Case(
                *(self.model, self.tok, record.request, self.hparams),
                tuple(self.contexts),
                self.damped,
            )
            made = peer.edit(case)
            return _rank_one(made.dense, self.projection.weight_layout), made.seconds["total"]

        return edit

    def answers(self, records: list[EditRecord], updates: list[RankOneUpdate | None]) -> list[str]:
        """How the model goes on after each edited prompt, under its update, to its natural stop."""
        made = [i for i, update in enumerate(updates) if update is not None]
        numbers = [made.index(i) if i in made else -1 for i in range(len(records))]
        trial = Trial(self.projection, [u for u in updates if u is not None], numbers)
        prompts = [text_ids(self.tok, record.request.text) for record in records]
        with tried(trial if made else None, numbers):
            return greedy_continuations(self.model, self.tok, prompts, ANSWER_TOKENS)


def _rank_one(dense: torch.Tensor, layout: str) -> RankOneUpdate:
    """The vectors of a rank-one matrix."""
    matrix = dense if layout == "out_in" else dense.T
    row = matrix[int(matrix.norm(dim=1).argmax())]
    u = row / row.norm()
    return RankOneUpdate(u, matrix @ u, layout)


def run(bench: Bench, records: list[EditRecord], work: Path) -> list[dict[str, Any]]:
    """One row a record and implementation; those that are in the file are not made again."""
    path = work / "counterfact.jsonl"
    rows = [json.loads(line) for line in path.open()] if path.exists() else []
    done = {(row["name"], row["case_id"]) for row in rows}
    for start in range(0, len(records), AT_ONCE):
        part = records[start : start + AT_ONCE]
        todo = {
            name: edit
            for name, edit in bench.implementations().items()
            if any((name, record.case_id) not in done for record in part)
        }
        if not todo:
            continue
        made: dict[str, list[tuple[RankOneUpdate | None, float]]] = {name: [] for name in todo}
        for record in part:
            for name, edit in todo.items():  # in turns
                made[name].append(edit(record))
        judge = RealModelJudge(bench.model, bench.tok, bench.projection, part)
        fresh: list[tuple[str, dict[str, Any]]] = []
        if ("unedited", part[0].case_id) not in done:
            said = bench.answers(part, [None] * len(part))
            for row, text in zip(judge.unedited(), said, strict=True):
                fresh.append(("unedited", {**row, "answer": text}))
        for name, edits in made.items():
            updates = [update for update, _ in edits]
            said = bench.answers(part, updates)
            norm = float(bench.projection.weight.norm())
            for row, (update, seconds), text in zip(judge(updates), edits, said, strict=True):
                size = None if update is None else update.norm / norm
                fresh.append((name, {**row, "seconds": seconds, "answer": text, "norm": size}))
        targets = {record.case_id: record.request.target for record in part}
        for name, row in fresh:
            row |= {"name": name, "says": says(row["answer"], targets[row["case_id"]])}
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for _, row in fresh)
        rows += [row for _, row in fresh]
        print(start + len(part), "records", flush=True)
    return rows


def says(answer: str, target: str) -> bool:
    """Whether an answer begins with the target, and goes on with no letter or digit of a word."""
    said = answer.strip()
    rest = said[len(target) :]
    return said.startswith(target.strip()) and not rest[:1].isalnum()


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    text = ("name", "answer", "seconds", "norm", "refused")
    figures = [{k: v for k, v in row.items() if k not in text} for row in rows]
    found: dict[str, Any] = means(figures)
    found["intervals"] = {name: interval(figures, name) for name in ("ES", "PS", "NS", "unchanged")}
    if "seconds" in rows[0]:
        seconds = [row["seconds"] for row in rows]
        found["seconds"] = statistics.median(seconds)
        found["seconds_quartiles"] = statistics.quantiles(seconds, n=4)[::2]
        norms = [row["norm"] for row in rows if row["norm"] is not None]
        found |= {"norm": statistics.median(norms), "norm_max": max(norms)}
        found["refused"] = sum(row["refused"] for row in rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    bench = Bench(args.peer)
    records = [record_of(raw) for raw in read_counterfact()[: args.records]]
    rows = run(bench, records, args.work)
    names = list(dict.fromkeys(row["name"] for row in rows))
    table = {name: summary([row for row in rows if row["name"] == name]) for name in names}
    report = {
        "setting": setting(),
        "records": len(records),
        "hparams": vars(bench.hparams),
        "second_moment": str(bench.moment),
        "context_templates": bench.contexts,
        "peers": {name: peer.commit for name, peer in bench.peers.items()},
        "summary": table,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
