"""What searches for v* cost, and what their edits are worth, on the real model.

    python -m benchmarks.value.study --work FOLDER --records 200 \
        --out benchmarks/results/value-search.json

Facts of CounterFact that SmolLM2 says by itself, each edited alone with the same contexts and the
same C. Cost is counted in rows (one context or KL prompt, forward or backward) and in processor
seconds of the search. Quality as in docs/metrics.md, with paired differences to the first
candidate, which is the reference's search, or ``--base``. Finished candidates are not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import rome_fast
from benchmarks.real_model.judging import RealModelJudge, interval, means, paired_interval
from benchmarks.session.arena_records import arena_records
from benchmarks.value.candidates import CANDIDATES, Candidate, search
from benchmarks.value.problem import Problem
from benchmarks.value.warm import STARTS, Starts
from rome_fast.bench.setting import setting
from rome_fast.edit import opened
from rome_fast.hparams import defaults_for
from rome_fast.model.open_model import open_model
from rome_fast.model.precision import Bfloat16Weights
from rome_fast.model.spec import ModelSpec
from rome_fast.moment.collect.ordinary import ordinary_second_moment
from rome_fast.prompt.contexts import WRITTEN_CONTEXTS
from rome_fast.prompt.encode import encode
from rome_fast.update.joint import solve_updates
from rome_fast.update.solve import build_constraint
from rome_fast.value.key import Keys

Row = dict[str, Any]
FRAGMENTS = [
    *WRITTEN_CONTEXTS,
    "- on the. {}",
    "and the past, but a place where memories live. {}",
    ", which means that the last 48. {}",
]
SENTENCES = [
    "{}",
    "It was a quiet morning. {}",
    "The book was published last year. {}",
    "They talked about it for a while. {}",
    "Many people have asked this question before. {}",
    "In the end nobody was surprised by the answer. {}",
]
SHOWN = ("ES", "PS", "NS", "unchanged", "ES_greedy", "PS_greedy")


class Study:
    """The facts, their judge, and the candidates' edits of them."""

    def __init__(self, work: Path, n: int) -> None:
        self.model, self.tok, _ = rome_fast.demo.load("smollm2")
        self.model.requires_grad_(False)
        # The reference's search; candidates say what they change.
        self.hparams, _ = defaults_for(ModelSpec.of(self.model), variant="original")
        self.records = arena_records(self.model, self.tok, work / "ranks.json")[:n]
        with opened(self.model, self.tok, self.hparams, None, "auto", None, "identity") as editor:
            sampled = list(editor.context_templates)
        self.contexts = {
            "sampled": sampled,
            "fragments": FRAGMENTS,
            "3 fragments": FRAGMENTS[:3],
            "sentences": SENTENCES,
            "3 sentences": SENTENCES[:3],
        }
        with open_model(self.model) as spec:
            self.projection = spec.down_projection(self.hparams.layer)
            self.moment = ordinary_second_moment(spec, self.tok, self.projection)
        self.judge = RealModelJudge(self.model, self.tok, self.projection, self.records)

    def searched(self, way: Candidate, base: list[Row] | None) -> list[Row]:
        """Every record's keys and offset, and what its search took.

        ``base``: those of the first candidate, which others may start from.
        """
        starts: Starts = [None] * len(self.records)
        if way.start != "zero":
            assert base is not None
            starts = STARTS[way.start](self, base)
        hparams = self.hparams.replace(**way.hparams)
        contexts, rows = self.contexts[way.contexts], []
        with open_model(self.model) as spec:
            weights = None
            if way.dtype == "bfloat16":
                weights = Bfloat16Weights(spec, self.projection).current()
            for record, start in zip(self.records, starts, strict=True):
                edit = encode(self.tok, record.request, contexts, hparams.fact_token)
                problem = Problem(spec, self.projection, hparams, edit, weights)
                began = time.process_time()
                found = search(problem, way, start)
                seconds = time.process_time() - began
                rows.append(
                    {
                        "keys": asdict(problem.keys),
                        "delta": found.delta,
                        "radius": problem.ball.radius,
                        "seconds": seconds,
                        "passes": problem.passes,
                        "forward_rows": problem.cost[0],
                        "backward_rows": problem.cost[1],
                        "loss": found.loss,
                    }
                )
        return rows

    def line(self, way: Candidate, searched: list[Row]) -> Row:
        """A candidate: what its searches cost, and what the edits do."""
        updates, shares = [], []
        for row in searched:
            delta = way.scale * row["delta"]
            delta = delta * min(1.0, row["radius"] / max(float(delta.norm()), 1e-12))
            constraint = build_constraint(self.hparams.variant, Keys(**row["keys"]), delta)
            updates += solve_updates(self.projection, [constraint], self.moment)
            shares.append(float(delta.norm()) / row["radius"])
        costs = ("seconds", "passes", "forward_rows", "backward_rows", "loss")
        medians = {name: statistics.median(row[name] for row in searched) for name in costs}
        medians["delta_over_radius"] = statistics.median(shares)
        norm = float(self.projection.weight.norm())
        medians["norm"] = statistics.median(update.norm / norm for update in updates)
        seconds = statistics.fmean(row["seconds"] for row in searched)
        return {
            "n": len(searched),
            "mean_seconds": seconds,
            "medians": medians,
            "rows": self.judge(updates),
        }


def summary(line: Row, base: list[Row] | None) -> Row:
    """A line without its records' rows, with intervals."""
    rows = line["rows"]
    kept = {k: v for k, v in line.items() if k != "rows"}
    kept |= {name: value for name, value in means(rows).items() if name in SHOWN}
    kept["intervals"] = {name: interval(rows, name) for name in SHOWN}
    if base is not None:
        kept["from_base"] = {name: paired_interval(rows, base, name) for name in SHOWN}
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES))
    parser.add_argument("--base", default="adam", help="the candidate that others differ from")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    study = Study(args.work, args.records)
    kept = args.work / f"value-search-{args.records}"
    kept.mkdir(exist_ok=True)
    report: Row = {"setting": setting(), "unedited": means(study.judge.unedited()), "lines": {}}
    base = base_searched = None
    for name in dict.fromkeys([args.base, *args.candidates]):
        way = CANDIDATES[name]
        key = hashlib.sha256(repr(replace(way, scale=1.0)).encode()).hexdigest()[:16]
        path = kept / f"{key}.pt"
        if not path.exists():
            torch.save(study.searched(way, base_searched), path)
        searched = torch.load(path)
        line = study.line(way, searched)
        report["lines"][name] = summary(line, base)
        base, base_searched = base or line["rows"], base_searched or searched
        shown = report["lines"][name]
        print(
            f"{name:34} {shown['mean_seconds']:6.2f} s {shown['medians']['passes']:3.0f} "
            f"{shown['medians']['forward_rows']:4.0f} {shown['medians']['delta_over_radius']:.2f} "
            f"{shown['medians']['norm']:.3f} "
            + " ".join(f"{k} {100 * shown[k]:.1f}" for k in SHOWN),
            flush=True,
        )
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
