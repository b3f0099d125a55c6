"""Does an edit made in one form answer in another? A sentence, a question and a chat.

    python -m benchmarks.real_model.carry_over --work FOLDER --records 100 \
        --out benchmarks/results/real-model-carry-over.json

Facts of CounterFact that SmolLM2 says by itself. Each is edited alone in one form or in several at
once, and asked in four: behind the sentence; as a question behind another that is answered; as a
question with WILD's instruction; and in a chat. An answer counts as said when it holds the target
as whole words up to its natural stop, as exact when it is the target and no more (docs/metrics.md).
The unedited model is asked for the true object in the same way: what it does not say of its own
facts no edit can be expected to say. Lines of a file that is there stay, but for those measured
again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import rome_fast
from benchmarks.real_model.judging import RealModelJudge, interval, means
from benchmarks.real_model.questions import QUESTIONS
from benchmarks.real_model.records import read_counterfact
from benchmarks.session.arena_records import arena_records
from rome_fast.bench.setting import setting
from rome_fast.edit import opened
from rome_fast.evaluate.generation import natural_answers
from rome_fast.evaluate.protocols import ANSWER_TOKENS, CONTEXTS
from rome_fast.evaluate.scoring import Trial
from rome_fast.hparams import RomeHparams
from rome_fast.model.open_model import open_model
from rome_fast.moment.collect.ordinary import ordinary_second_moment
from rome_fast.prompt.answers import KINDS, Answer
from rome_fast.prompt.chat import Chat
from rome_fast.prompt.contexts import QUESTION_CONTEXTS
from rome_fast.prompt.encode import KeptFact, TokenizedEdit, encode
from rome_fast.prompt.ends import ends_of
from rome_fast.timings import Timings
from rome_fast.types import EditRequest, RankOneUpdate
from rome_fast.update.joint import solve_updates
from rome_fast.update.solve import build_constraint
from rome_fast.value.window import KeyValueSearch

FORMS = ("sentence", "question", "instructed", "chat")
# How a question is put, where it is no chat: with another one answered before, or as WILD does.
PUT = {
    "question": CONTEXTS["one_shot"],
    "instructed": CONTEXTS["qa"],
}
Row = dict[str, Any]
SHOWN = ("way", "end", "ES", "PS", "NS", "unchanged", "seconds")


class CarryOver:
    """The facts, their questions, and edits of them in each form."""

    def __init__(self, work: Path, n: int) -> None:
        self.model, self.tok, _ = rome_fast.demo.load("smollm2")
        self.model.requires_grad_(False)
        self.hparams = RomeHparams.for_model(self.model)
        relation = {r["case_id"]: r["requested_rewrite"]["relation_id"] for r in read_counterfact()}
        known = arena_records(self.model, self.tok, work / "ranks.json")
        self.records = records = [r for r in known if relation[r.case_id] in QUESTIONS][:n]
        self.asked = [QUESTIONS[relation[r.case_id]] for r in records]
        with opened(self.model, self.tok, self.hparams, None, "auto", None, "identity") as editor:
            self.contexts = list(editor.context_templates)
        with open_model(self.model) as spec:
            self.projection = spec.down_projection(self.hparams.layer)
            self.moment = ordinary_second_moment(spec, self.tok, self.projection)
        self.judge = RealModelJudge(self.model, self.tok, self.projection, records)

    def request(self, i: int, form: str, end: str) -> EditRequest:
        """Fact i, as it is edited in a form."""
        of = self.records[i].request
        if form == "sentence":
            return replace(of, end=end)
        if form in PUT:
            prompt = PUT[form].replace("{}", self.asked[i])
            return EditRequest(prompt, of.subject, of.target, end=end)
        if form == "chat":
            return EditRequest(self.asked[i], of.subject, of.target, chat=True, end=end)
        assert form == "sentence in a chat"
        return EditRequest(of.prompt, of.subject, of.target, chat=True, end=end)

    def encoded(self, i: int, forms: Sequence[str], end: str, own: Row) -> TokenizedEdit:
        """The first form with its contexts, the others as further prompts."""
        first, *others = [self.request(i, form, end) for form in forms]
        templates = [*self.contexts, *own.get("templates", ())]
        edit = encode(self.tok, first, templates, self.hparams.fact_token, others)
        [ids] = ends_of(self.model, self.tok, [first], [edit], "none")
        edit = encode(self.tok, first, templates, self.hparams.fact_token, others, ids)
        return _weighted(edit, own.get("end_weight", 1.0))

    def updates(self, way: Row) -> tuple[list[RankOneUpdate], float]:
        """Each fact's update, and the seconds that it took."""
        variant = self.hparams.variant
        began = time.perf_counter()
        updates = []
        with open_model(self.model) as spec:
            search = KeyValueSearch(spec, self.tok, self.projection, self.hparams)
            for start in range(0, len(self.records), 4):
                part = range(start, min(start + 4, len(self.records)))
                edits = [self.encoded(i, way["forms"], way["end"], way) for i in part]
                for found in search.find(spec, edits, Timings()):
                    constraint = build_constraint(variant, found.keys, found.value.value_delta)
                    updates += solve_updates(self.projection, [constraint], self.moment)
        return updates, (time.perf_counter() - began) / len(updates)

    def answers(self, form: str, updates: Sequence[RankOneUpdate] | None = None) -> list[Answer]:
        """The greedy answer to every fact in a form, each under its own update."""
        requests = [self.request(i, form, "none") for i in range(len(self.records))]
        chats = [Chat() if form == "chat" else None] * len(requests)
        trial = None
        if updates is not None:
            trial = Trial(self.projection, list(updates), list(range(len(updates))))
        texts = [request.text for request in requests]
        return natural_answers(self.model, self.tok, texts, ANSWER_TOKENS, trial, chats)

    def line(self, way: Row) -> Row:
        """One way of editing."""
        updates, seconds = self.updates(way)
        rows = self.judge(updates)
        targets = [record.request.target for record in self.records]
        row: Row = {**way, **means(rows), "n": len(rows), "seconds": seconds}
        row["intervals"] = {name: interval(rows, name) for name in ("ES", "PS", "NS", "unchanged")}
        row["asked"], row["said"] = {}, {}
        for form in FORMS:
            answers = self.answers(form, updates)
            row["asked"][form] = verdicts(answers, targets)
            row["said"][form] = [answer.text for answer in answers]
        return row


def _weighted(edit: TokenizedEdit, weight: float) -> TokenizedEdit:
    """With so much weight on the end's tokens; what is read twice counts twice."""
    ends, target = edit.end_ids.tolist(), edit.target_ids.tolist()
    if weight == 1.0 or not ends:
        return edit
    more = []
    for row, start in enumerate(edit.target_start.tolist()):
        if weight > 1:
            fact = KeptFact(row, start + len(target), tuple(ends))
            more += [fact] * (round(weight) - 1)
        else:
            more += [KeptFact(row, start, tuple(target))] * (round(1 / weight) - 1)
    return replace(edit, kept=(*edit.kept, *more))


def verdicts(answers: Sequence[Answer], targets: Sequence[str]) -> dict[str, float]:
    """Share of each kind of answer, and of those that hold the target in any way."""
    kinds = [answer.is_to(target) for answer, target in zip(answers, targets, strict=True)]
    shares = {kind: kinds.count(kind) / len(kinds) for kind in KINDS}
    begun = [
        answer.text.strip().startswith(target.strip())
        for answer, target in zip(answers, targets, strict=True)
    ]
    held = [
        Answer(answer.text, has_ended=True).is_to(target) in ("exact", "contained")
        for answer, target in zip(answers, targets, strict=True)
    ]
    return {**shares, "begun": statistics.fmean(begun), "held": statistics.fmean(held)}


WAYS: dict[str, Row] = {
    "sentence": {"forms": ["sentence"]},
    "question": {"forms": ["question"]},
    "chat": {"forms": ["chat"]},
    # What contexts="all" does.
    "all contexts": {
        "forms": ["sentence", "sentence in a chat"],
        "templates": list(QUESTION_CONTEXTS),
    },
    "end, a third": {"forms": ["sentence"], "end_weight": 1 / 3},
    "end, thrice": {"forms": ["sentence"], "end_weight": 3.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--ends", nargs="+", default=["none", "auto"])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    study = CarryOver(args.work, args.records)
    true = [str(record.target_true) for record in study.records]
    before = {form: study.answers(form) for form in FORMS}
    report: Row = {"setting": setting(), "records": args.records}
    report["unedited"] = {
        **means(study.judge.unedited()),
        "true": {form: verdicts(found, true) for form, found in before.items()},
        "said": {form: [answer.text for answer in found] for form, found in before.items()},
    }
    print(report["unedited"]["true"], flush=True)
    kept = json.loads(args.out.read_text(encoding="utf-8"))["lines"] if args.out.exists() else []
    report["lines"] = kept
    for name in args.ways:
        for end in args.ends:
            row = study.line({**WAYS[name], "way": name, "end": end})
            same = [x for x in kept if (x["way"], x["end"]) == (name, end)]
            kept[:] = [x for x in kept if x not in same] + [row]
            print({k: row[k] for k in SHOWN}, flush=True)
            for form in FORMS:
                asked = {k: round(v, 3) for k, v in row["asked"][form].items()}
                print("   ", form, asked, flush=True)
            args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
