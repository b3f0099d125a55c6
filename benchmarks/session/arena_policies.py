"""Ways to write many edits into one weight, on the arena's values.

    python -m benchmarks.session.arena_policies --work FOLDER --sizes 80 300 \
        --out benchmarks/results/arena-policies.json

A line that is finished is kept in the folder, so that a run that is cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.session.arena import Arena, Row, summary
from benchmarks.session.arena_facts import ArenaFacts
from benchmarks.session.arena_stream import Step, stream
from benchmarks.session.policies import POLICIES, Problem
from rome_fast.bench.setting import setting

SESSION = "Session 0.3"


def problem_of(facts: ArenaFacts, steps: list[Step]) -> Problem:
    """What the steps ask of the weight; of a fact that is edited twice, both."""
    values = facts.search(1 + max(step.value for step in steps))
    reads = facts.read(1 + max(step.fact for step in steps))
    factor = facts.moment.factor().double()
    found = [values[step.value] for step in steps]
    prompt, mean = (
        torch.stack([key.double() for key in keys])
        for keys in zip(*(reads[step.fact].keys for step in steps), strict=True)
    )
    return Problem(
        weight=facts.projection.weight.detach().double(),
        moment=factor @ factor.T,
        prompt_keys=prompt,
        mean_keys=mean,
        deltas=torch.stack([f.value_delta.double() for f in found]),
    )


def spread(problem: Problem, delta: Tensor) -> float:
    """E |D k|^2 / E |W k|^2 over ordinary keys: how far a change moves the output on text."""
    moved, own = ((x @ problem.moment * x).sum() for x in (delta, problem.weight))
    return float(moved / own)


@contextmanager
def written(weight: Tensor, delta: Tensor) -> Iterator[None]:
    """While open, the weight is changed by so much."""
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.copy_(before.double() + delta)
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


def line_of(arena: Arena, name: str, n: int, order: int) -> Row:
    """One policy, judged."""
    began = time.perf_counter()
    row: Row = {"form": name, "n": n, "order": order}
    steps = stream(n, min(n, arena.searched), order)
    if name == SESSION:
        with arena.as_a_session(n, steps):
            return {**row, "seconds": time.perf_counter() - began, **arena.judged(n)}
    problem = problem_of(arena.facts, steps)
    delta = POLICIES[name](problem)
    row["seconds"] = time.perf_counter() - began
    row["norm"] = float(delta.norm() / problem.weight.norm())
    row["spread"] = spread(problem, delta)
    with written(arena.facts.projection.weight, delta):
        return {**row, **arena.judged(n)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[80, 300])
    parser.add_argument("--policies", nargs="+", default=[SESSION, *POLICIES])
    parser.add_argument("--orders", type=int, nargs="+", default=[0])
    parser.add_argument("--searched", type=int, default=300)
    parser.add_argument("--judged", type=int, default=80)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    arena = Arena(args.work, None, args.judged, args.searched, args.texts)
    path = args.work / f"policies-{args.searched}-{args.judged}-{args.texts}.jsonl"
    rows = [json.loads(line) for line in path.open()] if path.exists() else []
    done = {(row["form"], row["n"], row["order"]) for row in rows}
    todo = [(p, n, o) for n in args.sizes for p in args.policies for o in args.orders]
    for name, n, order in todo:
        if (name, n, order) in done:
            continue
        rows.append(line_of(arena, name, n, order))
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        shown = summary(rows[-1], arena.judge.records, arena.facts.records[:n])
        shown.pop("intervals")
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in shown.items()}, flush=True)
    about = {"layer": arena.facts.hparams.layer, "searched": args.searched, "texts": args.texts}
    lines = [summary(r, arena.judge.records, arena.facts.records[: r["n"]]) for r in rows]
    report = {"setting": setting(), **about, "lines": lines}
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
