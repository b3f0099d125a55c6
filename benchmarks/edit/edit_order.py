"""How a sequence of facts fares on the embedded model: one by one, or a window of them together.

    python -m benchmarks.edit.edit_order --out benchmarks/results/edit-order.json

The same facts, about distinct subjects, are edited in every order, each to the `target_new` it
ships with; so is each of them alone, with the search for v* in float32 and in bfloat16. Contexts
and second moment are the same for all and are not timed. Neighbours are all prompts that ship with
the facts, but those about an edited subject; unchanged is the answer of the unedited model.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import rome_fast
from benchmarks.edit.edit_quality import Bench
from benchmarks.support.results import write
from rome_fast import EditRequest
from rome_fast.bench.setting import setting
from rome_fast.demo import DemoFact

WAYS: dict[str, dict[str, Any]] = {
    "exact": {},
    **{f"window {n}": {"order": "independent", "window": n} for n in (4, 16, 64)},
    "exact, bfloat16": {"compute_dtype": "bfloat16"},
}
DTYPES = ("model", "bfloat16")
SHARES = ("success", "paraphrase", "neighbours")
Pair = tuple[str, str]  # a text and what it might go on with


class Orders(Bench):
    """The facts that are edited, and what the unedited model says to the neighbours."""

    def __init__(self, n_edits: int, seed: int) -> None:
        super().__init__({}, None)
        self.facts = distinct(self.facts, n_edits, seed)
        self.requests = [EditRequest(f.prompt, f.subject, f.target_new) for f in self.facts]
        # A subject that is edited ought to change.
        near = sorted({pair for fact in self.facts for pair in neighbours(fact)})
        self.near = [p for p in near if not any(f.subject in p[0] for f in self.facts)]
        self.near_before = self.answers(self.near)

    def edited(self, request: Any, compute_dtype: str = "model", **order: Any) -> Any:
        """A trial with all that is shared."""
        hparams = self.hparams.replace(compute_dtype=compute_dtype)
        shared = {"second_moment": self.moment, "context_templates": self.contexts}
        return rome_fast.trial(self.model, self.tok, request, hparams, **shared, **order)

    def answers(self, pairs: Sequence[Pair]) -> list[str]:
        return [self.says(*pair) for pair in pairs]

    def obeyed(self, pairs: Sequence[Pair]) -> float:
        """Percent of texts that the model goes on with their targets."""
        return agreement(self.answers(pairs), [target for _, target in pairs])

    def sequence(self, way: dict[str, Any], judge: bool) -> tuple[float, dict[str, Any]]:
        """(seconds of all edits, what they did together) in one way; judging is not timed."""
        weight = self.projection.weight.detach().clone()
        begin = time.perf_counter()
        with self.edited(self.requests, progress=False, **way) as results:
            seconds = time.perf_counter() - begin
            if not judge:
                return seconds, {}
            moved = self.projection.weight.detach() - weight
            return seconds, {
                "success_at_once": 100 * statistics.mean(result.success for result in results),
                "success_at_end": self.obeyed([(r.text, r.target) for r in self.requests]),
                "paraphrase": self.obeyed([p for f in self.facts for p in paraphrases(f)]),
                "neighbours": agreement(self.answers(self.near), self.near_before),
                "relative_norm": float(moved.norm() / weight.norm()),
                "steps": statistics.median(len(result.losses) for result in results),
                "moved": moved,
            }

    def alone(self, number: int, compute_dtype: str) -> tuple[dict[str, Any], torch.Tensor]:
        """(what one edit of the unedited model did, its change of the weight)."""
        fact, request = self.facts[number], self.requests[number]
        before = self.answers(neighbours(fact))
        begin = time.perf_counter()
        with self.edited(request, compute_dtype) as result:
            seconds = time.perf_counter() - begin
            return {
                "case_id": fact.case_id,
                "compute_dtype": compute_dtype,
                "success": self.obeyed([(request.text, request.target)]),
                "paraphrase": self.obeyed(paraphrases(fact)),
                "neighbours": agreement(self.answers(neighbours(fact)), before),
                "relative_norm": result.update_norm / result.weight_norm,
                "steps": len(result.losses),
                "seconds": round(seconds, 4),
            }, result.update.dense()


def distinct(facts: Sequence[DemoFact], n: int, seed: int) -> list[DemoFact]:
    """n facts in random order, no two about one subject."""
    shuffled = random.Random(seed).sample(facts, len(facts))
    return list({fact.subject: fact for fact in shuffled}.values())[:n]


def paraphrases(fact: DemoFact) -> list[Pair]:
    return [(text, fact.target_new) for text in fact.paraphrase_prompts]


def neighbours(fact: DemoFact) -> list[Pair]:
    return [(near.prompt, near.target) for near in fact.neighborhood_prompts]


def agreement(said: Sequence[str], wanted: Sequence[str]) -> float:
    """Percent of answers that are the wanted ones."""
    return 100 * statistics.mean(a == b for a, b in zip(said, wanted, strict=True))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double().flatten(), b.double().flatten()
    return float(a @ b / (a.norm() * b.norm()))


def sequences(bench: Orders, rounds: int) -> dict[str, dict[str, Any]]:
    """Every way of editing the sequence, in turns, so that a slow minute is one of all ways."""
    runs = [
        {name: bench.sequence(way, judge=not number) for name, way in WAYS.items()}
        for number in range(rounds)
    ]
    exact, rows = runs[0]["exact"][1]["moved"], {}
    for name in WAYS:
        facts, times = runs[0][name][1], [run[name][0] for run in runs]
        facts["cosine_to_exact"] = cosine(facts.pop("moved"), exact)
        facts["seconds_median"] = statistics.median(times)
        facts["seconds_spread"] = max(times) - min(times)
        rows[name] = {**facts, "edits_per_second": len(bench.requests) / facts["seconds_median"]}
    return rows


def singles(bench: Orders) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Each fact alone in both dtypes: (summary, one row an edit)."""
    rows, cosines = [], []
    for number in range(len(bench.facts)):
        pair = [bench.alone(number, dtype) for dtype in DTYPES]
        rows += [facts for facts, _ in pair]
        cosines.append(cosine(pair[0][1], pair[1][1]))
    between = {"median": statistics.median(cosines), "worst": min(cosines)}
    summary: dict[str, Any] = {"cosine_between": between}
    for dtype in DTYPES:
        mine = [row for row in rows if row["compute_dtype"] == dtype]
        summary[dtype] = {key: statistics.mean(row[key] for row in mine) for key in SHARES}
        for key in ("relative_norm", "steps", "seconds"):
            summary[dtype][f"{key}_median"] = statistics.median(row[key] for row in mine)
    return summary, rows


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """A column for each of ``rows``: there are more figures than ways."""
    table = Table("", *rows, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for key in next(iter(rows.values())):
        table.add_row(key, *(f"{row[key]:.5g}" for row in rows.values()))
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="which facts are drawn")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each sequence")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    warnings.simplefilter("ignore", rome_fast.errors.EditWarning)
    bench = Orders(args.edits, args.seed)
    for dtype in DTYPES:  # warm: the factor of C, torch's kernels
        bench.alone(0, dtype)
    table = sequences(bench, args.rounds)
    show(f"{args.edits} edits in sequence, {len(bench.near)} neighbours", table)
    summary, rows = singles(bench)
    show("each alone", {dtype: summary[dtype] for dtype in DTYPES})
    print("cosine between them:", summary["cosine_between"])
    if args.out:
        report = {
            "setting": setting(),
            **{name: vars(args)[name] for name in ("edits", "seed", "rounds")},
            "hparams": vars(bench.hparams),
            "second_moment": str(bench.moment),
            "n_neighbours": len(bench.near),
        }
        write(args.out, {**report, "sequences": table, "alone": summary}, rows)


if __name__ == "__main__":
    main()
