"""The four protocols over the same edits: as published, with the defaults, and with an end.

    python -m benchmarks.real_model.protocols --work FOLDER --records 300 \
        --out benchmarks/results/real-model-protocols.json

Facts of CounterFact that SmolLM2 says by itself and whose relation has a question, each edited
alone, asked before and after; "wild" asks that question behind another one that is answered, and
paraphrases and neighbours likewise. Finished cases stay in FOLDER, so that a run that is cut off
goes on; every answer with its verdict is written beside the results. The unedited model is asked
in the first way's run alone. Shares are of all records: what could not be edited counts as failed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import warnings
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import rome_fast
from benchmarks.real_model.questions import QUESTIONS
from benchmarks.real_model.records import read_counterfact
from benchmarks.session.arena_records import arena_records
from rome_fast.bench.setting import setting
from rome_fast.evaluate.asking import Said
from rome_fast.evaluate.differences import differences
from rome_fast.evaluate.judge import Judge
from rome_fast.evaluate.result import CaseResult
from rome_fast.hparams import RomeHparams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rome_fast.evaluate.evaluation import Evaluation
    from rome_fast.evaluate.records import EditRecord

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "original": {"variant": "original"},
    "auto": {"end": "auto"},
}
DEFAULT = "default"
PROTOCOLS = "rome,easyedit,strict,wild"
SHOWN = (
    *("ES", "PS", "NS", "neighborhood_unchanged", "rewrite_exact", "rephrase_exact"),
    *("wild_rewrite", "wild_rephrase", "wild_neighborhood"),
)


def asked_records(model: Any, tok: Any, work: Path, n: int) -> list[EditRecord]:
    """The first ``n`` known facts with a question."""
    relation = {r["case_id"]: r["requested_rewrite"]["relation_id"] for r in read_counterfact()}
    known = arena_records(model, tok, work / "ranks.json")
    return [
        replace(r, question=QUESTIONS[relation[r.case_id]].replace("{}", r.request.subject))
        for r in known
        if relation[r.case_id] in QUESTIONS
    ][:n]


@contextmanager
def asked_once(journal: Path) -> Iterator[None]:
    """While open, what the unedited model says is that of a finished run over the same records."""
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    stages = [json.loads(text) for text in lines if text.startswith('{"stage": "before"')]
    kept = {stage["index"]: Said.from_json(stage["said"]) for stage in stages}
    plain = Judge.said

    def said(judge: Judge, numbers: Sequence[int], updates: Any) -> list[Said]:
        # Of a model in float32 "after" comes with updates, which are tried.
        if updates is None and all(number in kept for number in numbers):
            return [kept[number] for number in numbers]
        return plain(judge, numbers, updates)

    with patch.object(Judge, "said", said):
        yield


def from_default(cases: Sequence[CaseResult], journal: Path) -> dict[str, Any]:
    """What a way changes beside the default on the same records, paired (docs/metrics.md)."""
    lines = journal.read_text(encoding="utf-8").splitlines()[1:]
    kept = [CaseResult.from_json(json.loads(text)) for text in lines if text[2:7] != "stage"]
    base = {case.index: case for case in kept}
    sides = [[base[case.index] for case in cases], cases]
    values = [[case.stages["after"].values for case in side] for side in sides]
    return {
        d.name: {**asdict(d.difference), "p": d.p} for d in differences(*values) if d.name in SHOWN
    }


def line(way: str, found: Evaluation) -> dict[str, Any]:
    """One way: every figure with its interval, and the natural stops of what is right."""
    shown = ("before", "after")
    metrics = {s: {k: asdict(v) for k, v in found.metrics[s].items()} for s in shown}
    readings = [r for case in found.cases for r in case.stages["after"].readings]
    asked = [r for r in readings if r.group == "rewrite"]
    begun = [r for r in asked if r.answer.strip().startswith(r.target.strip())]
    return {
        "way": way,
        "begun": len(begun) / len(asked),
        "natural_of_begun": sum(r.right for r in begun) / max(len(begun), 1),
        "n": len(found.cases),
        "metrics": metrics,
        "failed": len(found.failed),
        "seconds": found.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model, tok, _ = rome_fast.demo.load("smollm2")
    records = asked_records(model, tok, args.work, args.records)
    report: dict[str, Any] = {"setting": setting(), "records": len(records), "lines": []}
    if args.out.exists():
        report = json.loads(args.out.read_text(encoding="utf-8"))
    journal = args.work / f"protocols-{DEFAULT}.jsonl"
    for way in args.ways:
        with asked_once(journal):
            found = rome_fast.evaluate(
                model,
                tok,
                records,
                "single",
                RomeHparams.for_model(model).replace(**WAYS[way]),
                protocol=PROTOCOLS,
                context="one_shot",
                window=8,
                resume=args.work / f"protocols-{way}.jsonl",
            )
        found.save_readings(args.work / f"readings-{way}.jsonl")
        text = (args.work / f"readings-{way}.jsonl").read_bytes()
        kept = args.out.with_name(f"{args.out.stem}-readings-{way}.jsonl.gz")
        kept.write_bytes(gzip.compress(text, mtime=0))
        made = line(way, found)
        if way != DEFAULT:
            made["from_default"] = from_default(found.cases, journal)
        report["lines"] = [x for x in report["lines"] if x["way"] != way] + [made]
        report["rules"] = found.setting["protocols"]
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
