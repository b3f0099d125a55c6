"""Whether another search for v* needs half of Adam's passes, on two models.

    python -m benchmarks.edit.solver_study --out benchmarks/results/solver-study.json

A pass is one forward and backward. Every solver has the same objective, ball, budget and stop rule
(loss below 0.05 and the target the likeliest answer in every context). Adam's end is the loss at
which it stopped; a solver is there when its loss is no higher, and, where Adam had stopped by the
rule, when the rule holds. Each request is edited alone on the unedited model.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

import rome_fast
from benchmarks.edit.solver_candidates import SOLVERS, Evaluation
from benchmarks.edit.solver_problem import Bench, Problem
from benchmarks.support.results import SHARED
from rome_fast.bench.setting import setting

LOSS_FOUND = 5e-2
STORIES = SHARED / "models" / "stories260K"
NAMES = ("Lily", "Tim", "Tom", "Ben", "Sue", "Max", "Mia", "Anna")
STORY_PROMPTS = {
    ("{} went to the", "One day, {} went to the"): ("store", "beach", "zoo", "farm"),
    ("{} liked to play with the", "Every day, {} liked to play with the"): (
        "dog",
        "cat",
        "ball",
        "car",
    ),
    ("{} was very", "One day, {} was very"): ("sad", "tired", "angry", "happy"),
    ("{} saw a big", "Then {} saw a big"): ("bird", "tree", "fish", "dog"),
}


def search(problem: Problem, solver: str) -> list[Evaluation]:
    """Every point that a solver asked for, up to the stop rule or the budget."""
    searcher, seen = SOLVERS[solver](problem.ball), []
    delta = torch.zeros_like(problem.keys.value_init)
    for _ in range(problem.bench.hparams.v_num_grad_steps):
        seen.append(problem(delta))
        if found(seen[-1]):
            break
        delta = searcher.step(seen[-1])
    return seen


def check_against_edit(problem: Problem) -> None:
    """The objective here is that of rome_fast.edit: Adam's losses agree."""
    bench, losses = problem.bench, [at.loss for at in search(problem, "adam")]
    with rome_fast.trial(
        bench.model, bench.tok, problem.request, bench.hparams, second_moment=bench.moment
    ) as result:
        theirs = list(result.losses)
    assert len(losses) == len(theirs), (losses, theirs)
    assert max(abs(a - b) for a, b in zip(losses, theirs, strict=True)) < 1e-3, theirs


def found(at: Evaluation) -> bool:
    return at.loss < LOSS_FOUND and at.said


def compare(problem: Problem, adam: list[Evaluation], seen: list[Evaluation]) -> dict[str, Any]:
    """A search against Adam's: passes to Adam's end, and the edit made of its best point."""
    end, half = adam[-1], max(1, len(adam) // 2)
    there = found if found(end) else lambda at: at.loss <= end.loss
    passes = next((i for i, at in enumerate(seen, 1) if there(at)), None)
    best = seen[-1] if found(seen[-1]) else min(seen, key=lambda at: at.loss)
    at_half = min(at.loss for at in seen[:half])
    return {
        "passes": len(seen),
        "passes_to_adams_end": passes,
        "share_of_adams_passes": passes and passes / len(adam),
        "loss": best.loss,
        # Below the stop rule's 0.05 the loss is of no interest.
        "loss_at_half_over_adams": max(at_half, LOSS_FOUND) / max(end.loss, LOSS_FOUND),
        "delta_over_radius": float(best.delta.norm()) / problem.ball.radius,
        **problem.quality(best.delta),
    }


def quartiles(values: list[float]) -> list[float]:
    """Least, lower quartile, median, upper quartile, greatest."""
    inner = statistics.quantiles(values, n=4, method="inclusive")
    return [round(x, 4) for x in (min(values), *inner, max(values))]


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Quartiles over requests (a solver that never got there counts as infinite); percent."""
    shares = [row["share_of_adams_passes"] for row in rows]
    reached = [share for share in shares if share is not None]
    late = sorted(reached) + [float("inf")] * (len(rows) - len(reached))
    middle = statistics.median(late)
    spread = ("passes", "loss", "loss_at_half_over_adams", "delta_over_radius", "relative_norm")
    truth = ("rewrite", "paraphrase", "neighbours")
    return {
        "share_of_adams_passes_median": middle if middle < float("inf") else None,
        "within_half": 100 * sum(share <= 0.5 for share in reached) / len(rows),
        "never": 100 * (1 - len(reached) / len(rows)),
        **{k: quartiles([row[k] for row in rows]) for k in spread},
        **{k: 100 * statistics.mean(x for row in rows for x in row[k]) for k in truth},
    }


def demo_cases(edits: int) -> tuple[Bench, list[dict[str, Any]]]:
    model, tok, facts = rome_fast.demo.load()
    cases = [
        {
            "prompt": fact.prompt,
            "subject": fact.subject,
            "target": fact.target_new,
            "paraphrases": fact.paraphrase_prompts,
            "neighbours": [(p.prompt, p.target) for p in fact.neighborhood_prompts],
        }
        for fact in random.Random(0).sample(facts, edits)
    ]
    return Bench(model, tok), cases


def story_cases() -> tuple[Bench, list[dict[str, Any]]]:
    """Eight subjects in four sentences; neighbours are the same sentence of other subjects."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(STORIES)
    bench, cases = Bench(model, AutoTokenizer.from_pretrained(STORIES)), []
    for (prompt, paraphrase), targets in STORY_PROMPTS.items():
        for number, name in enumerate(NAMES):
            order = [targets[(number + i) % len(targets)] for i in range(len(targets))]
            target = next(t for t in order if bench.says(prompt.format(name), t) != t)
            others = [other for other in NAMES if other != name][:4]
            cases.append(
                {
                    "prompt": prompt,
                    "subject": name,
                    "target": target,
                    "paraphrases": [paraphrase.format(name)],
                    "neighbours": [(prompt.format(other), target) for other in others],
                }
            )
    return bench, cases


def study(model: str, edits: int) -> dict[str, Any]:
    """Every solver on every request of a model."""
    warnings.simplefilter("ignore")
    bench, cases = story_cases() if model == "stories260K" else demo_cases(edits)
    rows: dict[str, list[dict[str, Any]]] = {solver: [] for solver in SOLVERS}
    for number, case in enumerate(cases):
        problem = Problem(bench, case)
        if number == 0:
            check_against_edit(problem)
        adam = search(problem, "adam")
        for solver in SOLVERS:
            seen = adam if solver == "adam" else search(problem, solver)
            rows[solver].append(compare(problem, adam, seen))
    table = {solver: summarise(of_solver) for solver, of_solver in rows.items()}
    return {"requests": len(cases), "hparams": vars(bench.hparams), "solvers": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=60, help="facts of the embedded model")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    models = ("stories260K", "embedded")
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        found_of = dict(zip(models, pool.map(study, models, [args.edits] * 2), strict=True))
    for model, result in found_of.items():
        for solver, summary in result["solvers"].items():
            print(f"{model:12} {solver:17}", summary)
    if args.out:
        report = {"setting": setting(), "models": found_of}
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
