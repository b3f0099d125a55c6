"""Whether ``evaluate`` gives the figures of the authors' own evaluation code, on the same weights.

    python -m benchmarks.evaluate.agreement --peer kmeng01=CHECKOUT --peer easyedit=CHECKOUT \
        --peer wild=CHECKOUT --out benchmarks/results/evaluate-agreement.json

The first records of CounterFact, each edited alone. The code of kmeng01/rome, EasyEdit and WILD,
and this library's, ask the live model before and after; WILD's, which takes longest, after.
``evaluate`` then does it all by itself, so that its means are of edits of its own. At the end some
questions of the unedited model, which the definitions treat differently.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import rome_fast
from benchmarks.evaluate.answers_compared import Answers, easyedit_rows, kmeng01_rows, wild_rows
from benchmarks.evaluate.edge_questions import edge_questions
from benchmarks.evaluate.reference_code import EasyEditCode, Kmeng01Code, load_code
from benchmarks.real_model.records import read_counterfact, record_of
from benchmarks.support.results import write
from benchmarks.support.tables import Row
from rome_fast.bench.setting import setting
from rome_fast.edit import opened
from rome_fast.evaluate.records import EditRecord, Question

if TYPE_CHECKING:
    from rome_fast.evaluate.evaluation import Evaluation

MODELS = {"toy": "embedded model", "smollm2": "SmolLM2-135M"}
# What kmeng01's summary calls them.
SUMMARY = {
    "ES": "post_rewrite_success",
    "PS": "post_paraphrase_success",
    "NS": "post_neighborhood_success",
    "EM": "post_rewrite_diff",
    "PM": "post_paraphrase_diff",
    "NM": "post_neighborhood_diff",
}


class Stage(NamedTuple):
    """What this library and, by name, the others say of a record."""

    answers: Answers
    theirs: dict[str, Row]


def records(n: int) -> list[EditRecord]:
    """The first records; their questions also as EasyEdit's groups, of one and of several."""
    return [
        replace(
            record,
            locality={"alone": record.neighborhood[:1], "together": record.neighborhood[1:]},
            portability={"reworded": _reworded(record)},
        )
        for record in map(record_of, read_counterfact()[:n])
    ]


def _reworded(record: EditRecord) -> tuple[Question, ...]:
    texts = (record.request.text, *record.paraphrases)
    return tuple(Question(text, record.request.target) for text in texts)


class Agreement:
    """A model, the codes that judge it, and what has been compared."""

    def __init__(self, name: str, codes: Sequence[Any], n_records: int) -> None:
        self.model, self.tok, _ = rome_fast.demo.load(name)
        self.model.requires_grad_(False)
        self.records, self.codes = records(n_records), codes
        with opened(self.model, self.tok, None, None, "auto", None, None) as editor:
            self.shared: dict[str, Any] = {
                "hparams": editor.hparams,
                "second_moment": editor.second_moment,
                "context_templates": editor.context_templates,
            }
        self.rows: list[Row] = []

    def run(self) -> None:
        """Edit each record, and compare before and after."""
        stages: dict[str, list[Stage]] = {"before": [], "after": []}
        for record in self.records:
            before = self._asked(record, "before", None)
            result = rome_fast.edit(self.model, self.tok, record.request, **self.shared)
            after = self._asked(record, "after", before)
            result.revert()
            stages["before"].append(before)
            stages["after"].append(after)
            probs = f"{result.prob_before:.3f} -> {result.prob_after:.3f}"
            print(record.case_id, record.request.target, probs, flush=True)
        for name, of in stages.items():
            for code in self.codes:
                if isinstance(code, Kmeng01Code):
                    self._add_summary(code, name, of)

    def _asked(self, record: EditRecord, stage: str, before: Stage | None) -> Stage:
        answers = Answers(self.model, self.tok, record, before and before.answers)
        found: dict[str, Row] = {}
        for code in self.codes:
            asked = (self.model, self.tok, record)
            rows: Iterable[Row]
            if isinstance(code, Kmeng01Code):
                found[code.name] = code.counterfact(*asked)
                rows = kmeng01_rows(found[code.name], code.zsre(*asked), answers)
            elif isinstance(code, EasyEditCode):
                found[code.name] = code.quality(*asked)
                if before is not None:
                    code.add_locality(before.theirs[code.name], found[code.name], record)
                rows = easyedit_rows(found[code.name], answers)
            else:
                rows = () if before is None else wild_rows(code, answers)
            self._add(record, stage, code.name, rows)
        return Stage(answers, found)

    def _add_summary(self, code: Kmeng01Code, stage: str, of: Sequence[Stage]) -> None:
        theirs = code.summary([found.theirs[code.name] for found in of])
        for record, found, *values in zip(
            self.records, of, *(theirs[key] for key in SUMMARY.values()), strict=True
        ):
            mine = found.answers.values
            rows = [
                {"kind": name, "theirs": float(value), "ours": mine[name]}
                for name, value in zip(SUMMARY, values, strict=True)
            ]
            self._add(record, stage, code.name, rows)

    def _add(self, record: EditRecord, stage: str, code: str, rows: Iterable[Row]) -> None:
        head = {"case_id": record.case_id, "stage": stage, "code": code}
        self.rows += [{**head, **row} for row in rows]

    def evaluated(self) -> Evaluation:
        """The verb's own run, its edits included; values are searched one by one."""
        return rome_fast.evaluate(
            *(self.model, self.tok, self.records),
            protocol="rome,easyedit,wild",
            context="question",
            generate_tokens=0,
            window=1,
            progress=False,
            **self.shared,
        )


def figures(rows: Sequence[Row], evaluation: Evaluation) -> list[Row]:
    """A row for each kind of number: how many, the largest difference, and of figures the means."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["code"], row["kind"], row["stage"]), []).append(row)
    found = []
    for (code, kind, stage), of in groups.items():
        differences = [abs(row["theirs"] - row["ours"]) for row in of]
        line = {
            "code": code,
            "kind": kind,
            "stage": stage,
            "n": len(of),
            "largest": max(differences),
            "differing": sum(difference > 1e-3 for difference in differences),
        }
        if kind in evaluation.metrics[stage]:
            line["theirs"] = statistics.fmean(row["theirs"] for row in of)
            line["ours"] = statistics.fmean(row["ours"] for row in of)
            line["evaluate"] = evaluation.metrics[stage][kind].mean
        found.append(line)
    return found


def _is_told(row: Row) -> bool:
    """Whether the report holds a number by itself: NLLs, answers, and whatever differs."""
    return row["kind"] == "NLL" or row["kind"].startswith("answer") or row["theirs"] != row["ours"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--records", type=int, default=20)
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    report: Row = {"setting": setting(), "threads": torch.get_num_threads()}
    # Transformers imports what it may use when it loads its first model, not under stubs.
    rome_fast.demo.load("toy")
    codes = [load_code(spec) for spec in args.peer]
    report |= {"records": args.records, "peers": {code.name: code.commit for code in codes}}
    report |= {"models": {}, "edges": {}}
    rows: list[Row] = []
    for name in args.model or MODELS:
        agreement = Agreement(name, codes, args.records)
        agreement.run()
        found = figures(agreement.rows, agreement.evaluated())
        report["models"][MODELS[name]] = found
        report["edges"][MODELS[name]] = edge_questions(agreement.model, agreement.tok, codes)
        rows += [{"model": MODELS[name], **row} for row in agreement.rows if _is_told(row)]
        print(json.dumps(found, indent=1), json.dumps(report["edges"][MODELS[name]], indent=1))
        if args.out:
            write(args.out, report, rows, "compared_one_by_one")


if __name__ == "__main__":
    main()
