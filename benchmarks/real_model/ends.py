"""Do answers end? Each fact edited alone, with and without an end behind its target.

    python -m benchmarks.real_model.ends --work FOLDER --records 100 \
        --out benchmarks/results/real-model-ends.json

Facts of CounterFact that SmolLM2 says or nearly says. Of each edit the greedy answer of up to 24
tokens is read in three settings: behind the edited prompt, behind "Q: ... A:", and in a chat. It is
right when it says the target in the first words ("truncated"); it is right at its natural stop when
it says no more than that: it ends, at a full stop, a line break or an end token, and holds nothing
between target and end but a clause. PS, NS and unchanged as everywhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import rome_fast
from benchmarks.real_model.counterfact_table import says
from benchmarks.real_model.judging import RealModelJudge, interval, means
from benchmarks.real_model.questions import QUESTIONS
from benchmarks.real_model.records import read_counterfact
from benchmarks.real_model.values import Found, find_values
from benchmarks.session.arena_records import arena_records
from rome_fast.bench.setting import setting
from rome_fast.edit import opened
from rome_fast.evaluate.generation import generate
from rome_fast.evaluate.scoring import Trial
from rome_fast.hparams import RomeHparams
from rome_fast.model.open_model import open_model
from rome_fast.moment.collect.ordinary import ordinary_second_moment
from rome_fast.prompt.chat import Chat
from rome_fast.types import RankOneUpdate
from rome_fast.update.joint import solve_updates

N_TOKENS = 24
WAYS = ("none", "auto", ".", "eos")
SETTINGS = ("completion", "question", "chat")
_STOPS = (".", "!", "?", "\n")
Row = dict[str, Any]


class Ends:
    """The facts, and their edits with one end or another."""

    def __init__(self, work: Path, n: int) -> None:
        self.work = work
        self.model, self.tok, _ = rome_fast.demo.load("smollm2")
        self.model.requires_grad_(False)
        self.hparams = RomeHparams.for_model(self.model)
        relation = {r["case_id"]: r["requested_rewrite"]["relation_id"] for r in read_counterfact()}
        known = arena_records(self.model, self.tok, work / "ranks.json")
        self.records = records = [r for r in known if relation[r.case_id] in QUESTIONS][:n]
        self.questions = [
            QUESTIONS[relation[r.case_id]].replace("{}", r.request.subject) for r in records
        ]
        with opened(self.model, self.tok, self.hparams, None, "auto", None, "identity") as editor:
            self.contexts = editor.context_templates
        with open_model(self.model) as spec:
            self.projection = spec.down_projection(self.hparams.layer)
            self.moment = ordinary_second_moment(spec, self.tok, self.projection)
        self.judge = RealModelJudge(self.model, self.tok, self.projection, records)

    def found(self, way: str) -> list[Found]:
        """Values of all facts, searched with this end."""
        asked = [replace(r, request=replace(r.request, end=way)) for r in self.records]
        options = {"templates": self.contexts, "window": 4}
        folder = self.work / "values-ends"
        return find_values(self.model, self.tok, asked, self.hparams, folder, **options)

    def answers(self, name: str, updates: Sequence[RankOneUpdate] | None) -> list[str]:
        """Greedy answers to every fact's question in a setting, each under its own update."""
        chats: list[Chat | None] | None = None
        prompts = [record.request.text for record in self.records]
        if name == "question":
            prompts = [f"Q: {question}\nA:" for question in self.questions]
        elif name == "chat":
            prompts, chats = self.questions, [Chat()] * len(self.questions)
        trial = None
        if updates is not None:
            trial = Trial(self.projection, list(updates), list(range(len(updates))))
        return generate(self.model, self.tok, prompts, N_TOKENS, trial, chats)

    def line(self, way: str) -> Row:
        """One kind of end."""
        found = self.found(way)
        updates = [
            solve_updates(self.projection, [f.constraint(self.hparams.variant)], self.moment)[0]
            for f in found
        ]
        rows = self.judge(updates)
        said = {name: self.answers(name, updates) for name in SETTINGS}
        row: Row = {"way": way, **means(rows)}
        row["intervals"] = {name: interval(rows, name) for name in ("ES", "PS", "NS", "unchanged")}
        row["steps"] = statistics.fmean(len(f.losses) for f in found)
        row["seconds"] = statistics.fmean(f.seconds for f in found)
        row["answers"] = {name: self.verdicts(texts) for name, texts in said.items()}
        row["said"] = said
        return row

    def verdicts(self, answers: Sequence[str]) -> dict[str, float]:
        """Shares of answers that begin with the target, and that stop there by themselves."""
        targets = [record.request.target for record in self.records]
        right = [says(a, t) for a, t in zip(answers, targets, strict=True)]
        contained = [t.strip() in a for a, t in zip(answers, targets, strict=True)]
        ended = [stops(a, t) for a, t in zip(answers, targets, strict=True)]
        both = sum(r and e for r, e in zip(right, ended, strict=True))
        return {
            "truncated": statistics.fmean(right),
            "contained": statistics.fmean(contained),
            "natural": statistics.fmean(r and e for r, e in zip(right, ended, strict=True)),
            "natural_of_truncated": both / max(sum(right), 1),
        }


def stops(answer: str, target: str) -> bool:
    """Whether nothing but an end follows the target: a stop, a line break, or the end itself."""
    rest = answer.strip().removeprefix(target.strip())
    return rest.strip(" ")[:1] in ("", *_STOPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    study = Ends(args.work, args.records)
    before = {name: study.verdicts(study.answers(name, None)) for name in SETTINGS}
    report: Row = {"setting": setting(), "records": args.records}
    report["unedited"] = {**means(study.judge.unedited()), "answers": before}
    report["lines"] = []
    for way in args.ways:
        report["lines"].append(study.line(way))
        shown = {k: v for k, v in report["lines"][-1].items() if k not in ("said", "intervals")}
        print(shown, flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
