"""A Session in the weight of the real model: how it goes with ever more edits.

    python -m benchmarks.real_model.thousand --work FOLDER --edits 300 \
        --out benchmarks/results/real-model-thousand.json

One Session makes all edits, is looked at every twenty and never stopped, so that what was foretold
can be held against what came. As edits are solved as one, whose order makes no difference, fewer of
them are the same log with the others taken out, and another order is another choice of which are
there (tests/session/test_joint.py). Some are consolidated. The first ``--judged`` are asked about.
Lines that the results file has are not made again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import rome_fast
from benchmarks.real_model.judging import RealModelJudge, interval, means
from benchmarks.session.arena import held_texts
from benchmarks.session.arena_records import arena_records
from rome_fast.bench.setting import setting
from rome_fast.evaluate.drift import Drift
from rome_fast.evaluate.records import Question
from rome_fast.evaluate.scoring import score
from rome_fast.hparams import RomeHparams
from rome_fast.model.open_model import open_model
from rome_fast.session.consolidate import STEPS

JOURNAL = "edits.journal"
EVERY = 20
WATCH = rome_fast.HealthCheck(every=EVERY, on_unhealthy="warn")
Row = dict[str, Any]


class Thousand:
    """The log of one Session, with some edits taken out, and what the model then says."""

    def __init__(self, work: Path, n: int, judged: int, n_texts: int) -> None:
        self.model, self.tok, _ = rome_fast.demo.load("smollm2")
        self.records = arena_records(self.model, self.tok, work / "ranks.json")[:n]
        self.folder, self.judged = work / f"thousand-{n}", judged
        self.folder.mkdir(exist_ok=True)
        with open_model(self.model) as spec:
            self.projection = spec.down_projection(RomeHparams.for_model(self.model).layer)
        texts = [self.tok.decode(ids) for ids in held_texts(self.tok)[:n_texts]]
        self.drift = Drift.baseline(self.model, self.tok, texts)
        self.before = self.drift.measure(self.model)["perplexity"]

    def edit(self) -> Row:
        """Make the edits that the journal does not have yet, in a model of its own."""
        model, tok, _ = rome_fast.demo.load("smollm2")
        path = self.folder / JOURNAL
        if path.exists():
            session = rome_fast.Session.resume(path, model, tok)
        else:
            session = rome_fast.Session(model, tok, form="weight", journal=path, health=WATCH)
        with session:
            requests = [record.request for record in self.records[len(session.log.edits) :]]
            for n_new, _ in enumerate(session.stream(requests, progress=False), 1):
                if n_new % EVERY == 0:
                    print(session.checks[-1], flush=True)
            return {"checks": [check.to_json() for check in session.checks]}

    def line(self, n: int, order: int, steps: int = 0) -> Row:
        """The first ``n`` facts of an order; steps: consolidated, with so many for each edit."""
        numbers = list(range(len(self.records)))
        if order:
            random.Random(order).shuffle(numbers)
        chosen = numbers[:n]
        row: Row = {"n": n, "order": order, "steps": steps}
        asked = [self.records[i] for i in chosen[: self.judged]]
        judge = RealModelJudge(self.model, self.tok, self.projection, asked)
        copy = self.folder.with_suffix(".copy")
        shutil.copytree(self.folder, copy, dirs_exist_ok=True)
        with rome_fast.Session.resume(copy / JOURNAL, self.model, self.tok) as session:
            for number in {edit.edit_id for edit in session.log.holding()}:
                if number - 1 not in chosen:
                    session.revert(number)
            if steps:
                row["consolidated"] = vars(session.consolidate(steps=steps, progress=False))
            row |= {"spread": session.health().spread, **self._judged(judge, chosen)}
            unedited = means(judge.unedited())
            row["lost"] = {name: unedited[name] - row[name] for name in ("NS", "unchanged")}
            session.undo(n)
        shutil.rmtree(copy)
        return row

    def _judged(self, judge: RealModelJudge, chosen: list[int]) -> Row:
        """Scores with intervals, what happens to text, and the edits that hold."""
        rows, drift = judge.now(), self.drift.measure(self.model)
        questions = [Question.of(self.records[i].request) for i in chosen]
        said = [s.exact for s in score(self.model, self.tok, questions)]
        shown = ("ES", "PS", "NS", "unchanged")
        return {
            **means(rows),
            "intervals": {name: interval(rows, name) for name in shown},
            "holds": sum(said) / len(said),
            "perplexity": drift["perplexity"] / self.before,
            "kl": drift["kl"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--edits", type=int, default=300)
    parser.add_argument("--sizes", type=int, nargs="*", default=[20, 40, 80, 150, 300])
    parser.add_argument("--orders", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--consolidated", type=int, nargs="*", default=[80, 300])
    parser.add_argument("--judged", type=int, default=80)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    study = Thousand(args.work, args.edits, args.judged, args.texts)
    lines: list[Row] = json.loads(args.out.read_text("utf-8"))["lines"] if args.out.exists() else []
    report: Row = {"setting": setting(), "edits": args.edits, **study.edit(), "lines": lines}
    asked = [(n, order, 0) for n in args.sizes for order in args.orders]
    asked += [(n, order, STEPS) for n in args.consolidated for order in args.orders]
    done = {(line["n"], line["order"], line["steps"]) for line in lines}
    for n, order, steps in (one for one in asked if one not in done):
        lines.append(study.line(n, order, steps))
        print({k: v for k, v in report["lines"][-1].items() if k != "intervals"}, flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
