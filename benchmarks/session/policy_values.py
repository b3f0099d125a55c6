"""Edits solved as one whose values are searched on the unedited weight, or on the edited one.

    python -m benchmarks.session.policy_values --work FOLDER --n 80 \
        --out benchmarks/results/policy-values.json

On the edited weight a search sees what the edits before it do at its prompts, and what it finds
depends on their order; what is asked of the unedited weight's output is then what it finds and what
was there already. Both are searched as a Session of the weight searches.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.real_model.values import find_values
from benchmarks.session.arena import Arena, Row, summary
from benchmarks.session.arena_policies import problem_of, spread, written
from benchmarks.session.arena_stream import stream
from benchmarks.session.policies import Problem, joint
from rome_fast.bench.setting import setting
from rome_fast.model.open_model import open_model
from rome_fast.session.start import STOP_LOSS
from rome_fast.update.softness import softness


class Values:
    """The keys of the first ``n`` facts, and their values found in two ways."""

    def __init__(self, arena: Arena, n: int) -> None:
        self.arena, self.facts, self.n = arena, arena.facts, n
        self.problem = problem_of(arena.facts, stream(n, n))
        with open_model(self.facts.model) as spec:
            args = spec, self.facts.tok, self.facts.projection, self.facts.moment
            self.lam = softness(*args)
        self.hparams = self.facts.hparams.replace(v_stop_loss=STOP_LOSS)

    def first(self, deltas: Tensor) -> Problem:
        """Of as many facts as there are deltas."""
        n, plain = len(deltas), self.problem
        keys = {"prompt_keys": plain.prompt_keys[:n], "mean_keys": plain.mean_keys[:n]}
        return replace(plain, deltas=deltas, **keys)

    def unedited(self) -> Tensor:
        """[n, d_value], all searched on the unedited weight."""
        return torch.cat([self._searched(i, "unedited") for i in range(self.n)])

    def edited(self) -> Tensor:
        """[n, d_value], each searched where those before it are in the weight."""
        deltas = torch.zeros(0, self.problem.deltas.shape[1], dtype=torch.float64)
        for i in range(self.n):
            change = torch.zeros_like(self.problem.weight)
            if i:
                change = joint(self.first(deltas), self.lam, "prompt")
            there = change @ self.problem.prompt_keys[i]
            with written(self.facts.projection.weight, change):
                deltas = torch.cat([deltas, self._searched(i, "edited") + there])
        return deltas

    def _searched(self, i: int, folder: str) -> Tensor:
        options = {"templates": self.facts.contexts, "window": 1}
        path = self.facts.work / f"values-{folder}"
        records = self.facts.records[i : i + 1]
        model, tok = self.facts.model, self.facts.tok
        [found] = find_values(model, tok, records, self.hparams, path, **options)
        return found.value_delta.double()[None]

    def line(self, form: str, deltas: Tensor) -> Row:
        """Both solved in the same way."""
        problem = self.first(deltas)
        delta = joint(problem, self.lam, "prompt")
        row = {"form": form, "n": self.n, "spread": spread(problem, delta)}
        row["length"] = float(deltas.norm(dim=1).median())
        with written(self.facts.projection.weight, delta):
            row |= self.arena.judged(self.n)
        return summary(row, self.arena.judge.records, self.facts.records[: self.n])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--n", type=int, default=80)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    study = Values(Arena(args.work, None, args.n, 300, args.texts), args.n)
    report: Row = {"setting": setting(), "lam": study.lam, "texts": args.texts, "lines": []}
    for form in ("unedited", "edited"):
        report["lines"].append(study.line(form, getattr(study, form)()))
        print({k: v for k, v in report["lines"][-1].items() if k != "intervals"}, flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
