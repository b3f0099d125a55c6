"""Facts of the real model edited one after the other, all judged at the end.

    python -m benchmarks.real_model.sequence --work FOLDER \
        --out benchmarks/results/real-model-sequence.json

The facts are those that the model says by itself, then those among its ten likeliest words, each of
another subject. A way is a kind of sequence and a second moment; what it leaves is a line of
``sequence.jsonl`` in the folder, so that a run that is cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import rome_fast
from benchmarks.real_model.judging import RealModelJudge, interval, means
from benchmarks.real_model.records import known_records
from benchmarks.support.results import SHARED
from rome_fast.bench.setting import setting
from rome_fast.beside.module import Beside
from rome_fast.evaluate.drift import Drift
from rome_fast.evaluate.records import EditRecord
from rome_fast.hparams import RomeHparams
from rome_fast.model.open_model import open_model
from rome_fast.moment.collect.collection import ENOUGH_KEYS
from rome_fast.moment.collect.collector import collect_second_moment
from rome_fast.moment.collect.ordinary import ordinary_second_moment

N_TEXTS, LENGTH = 200, 64
WIKITEXT_PER_DIM = 64


class Sequences:
    """The facts, what is asked of all of them, and the ways of editing them."""

    def __init__(self, work: Path, n_records: int) -> None:
        self.model, self.tok, _ = rome_fast.demo.load("smollm2")
        known = known_records(self.model, self.tok, work / "ranks.json", within=10)
        by_subject: dict[str, EditRecord] = {}
        for record in known:
            by_subject.setdefault(record.request.subject, record)
        self.records = list(by_subject.values())[:n_records]
        self.requests = [record.request for record in self.records]
        self.hparams = RomeHparams.for_model(self.model)
        with open_model(self.model) as spec:
            self.projection = spec.down_projection(self.hparams.layer)
        self.judge = RealModelJudge(self.model, self.tok, self.projection, self.records)
        lines = (SHARED / "wikitext" / "wikitext-2-valid.txt").read_text("utf-8").splitlines()
        held = [ids for ids in self.tok(lines)["input_ids"] if len(ids) >= LENGTH]
        texts = [self.tok.decode(ids[:LENGTH]) for ids in held[:N_TEXTS]]
        self.drift = Drift.baseline(self.model, self.tok, texts)
        self.before = self.drift.measure(self.model)
        self.ways = {
            "edit_many": lambda: self.plain(None),
            f"edit_many, {WIKITEXT_PER_DIM} keys a dimension": lambda: self.plain(self.wikitext()),
            "Session": lambda: self.session(form="neuron"),
            "Session, weight": self.session,
            "Session, weight, consolidated": lambda: self.session(consolidate=True),
            "Session, weight, sequential": lambda: self.session(solve="sequential"),
            f"Session, weight, sequential, {ENOUGH_KEYS} keys a dimension": lambda: self.session(
                self.ordinary(), solve="sequential"
            ),
            "edit_many, kmeng01's update": lambda: self.plain(None, "original"),
            "edit_many, all solved as one": self.at_once,
            "edit_many, C = I": lambda: self.plain("identity"),
        }

    def plain(self, second_moment: Any, variant: str | None = None) -> None:
        rome_fast.edit_many(
            # The original is searched as the reference does, too.
            *(self.model, self.tok, self.requests, None if variant else self.hparams),
            second_moment=second_moment,
            variant=variant,
            progress=False,
        )

    def at_once(self) -> None:
        window = len(self.requests)
        options = {"order": "independent", "window": window, "progress": False}
        rome_fast.edit_many(self.model, self.tok, self.requests, self.hparams, **options)

    def session(
        self,
        second_moment: Any = None,
        form: str = "weight",
        solve: str = "joint",
        consolidate: bool = False,
    ) -> None:
        # To the end, however the model is: what is left is the question.
        health = rome_fast.HealthCheck(on_unhealthy="warn")
        options = {"second_moment": second_moment, "form": form, "solve": solve, "health": health}
        with rome_fast.Session(self.model, self.tok, **options) as session:
            for _ in session.stream(self.requests, progress=False):
                pass
            if consolidate:
                session.consolidate(progress=False)

    def wikitext(self) -> rome_fast.SecondMoment:
        """C of many more keys than the default's."""
        text = (SHARED / "wikitext" / "wikipedia-paragraphs.txt").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.strip()]
        random.Random(0).shuffle(lines)
        layer, tokens = self.projection.layer, WIKITEXT_PER_DIM * self.projection.d_key
        options = {"tokens": tokens, "progress": False}
        return collect_second_moment(self.model, self.tok, lines, layer, **options)[layer]

    def ordinary(self) -> rome_fast.SecondMoment:
        """C as a single edit has it."""
        with open_model(self.model) as spec:
            return ordinary_second_moment(spec, self.tok, self.projection)

    def run(self, way: str) -> dict[str, Any]:
        """What is left of everything after all edits; the weight is put back."""
        before = self.projection.weight.detach().clone()
        began = time.perf_counter()
        self.ways[way]()
        seconds = time.perf_counter() - began
        made = {"way": way, "rows": self.judge.now(), "seconds": seconds / len(self.requests)}
        made |= self.drift.measure(self.model)
        with torch.no_grad():
            made["norm"] = float((self.projection.weight - before).norm() / before.norm())
            self.projection.weight.copy_(before)
        standing = Beside.at(self.projection)
        if standing is not None:
            standing.set([])
        return made


def summary(line: dict[str, Any], unedited: dict[str, float]) -> dict[str, Any]:
    rows = line["rows"]
    found = {k: v for k, v in line.items() if k != "rows"} | means(rows)
    found["perplexity"] = line["perplexity"] / unedited["perplexity"]
    names = ("ES", "PS", "NS", "unchanged")
    return {**found, "intervals": {name: interval(rows, name) for name in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--ways", nargs="+", help="only these; others of the results file stay")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    study = Sequences(args.work, args.records)
    path = args.work / "sequence.jsonl"
    lines = [json.loads(line) for line in path.open()] if path.exists() else []
    known = json.loads(args.out.read_text("utf-8"))["ways"] if args.out.exists() else {}
    for way in args.ways or study.ways:
        if way not in {line["way"] for line in lines}:
            lines.append(study.run(way))
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(summary(lines[-1], study.before), flush=True)
        report = {
            "setting": setting(),
            "records": len(study.records),
            "hparams": vars(study.hparams),
            "unedited": means(study.judge.unedited()),
            "ways": known | {line["way"]: summary(line, study.before) for line in lines},
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
