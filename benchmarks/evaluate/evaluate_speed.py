"""How long an evaluation takes, batched and case by case, at equal numbers.

    python -m benchmarks.evaluate.evaluate_speed --out benchmarks/results/evaluate.json

Facts of the embedded model, or the records of a file, each edited alone. Case by case is the plain
implementation of tests/support/reference.py: `rome_fast.edit`, one forward a prompt and target,
`model.generate` a prompt, `revert`. Both are run in turns; edits are the same and are timed apart,
because the search for v* is no part of what is compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
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
from benchmarks.support.results import ROOT
from rome_fast.bench.setting import setting
from rome_fast.prompt.contexts import contexts_for

sys.path.insert(0, str(ROOT / "tests" / "support"))
import reference

PHASES = ("edit", "score", "generate")


class Bench:
    """The embedded model, and the records and settings of both ways."""

    def __init__(self, records: Path | None, limit: int, n_tokens: int) -> None:
        self.model, self.tok, facts = rome_fast.demo.load()
        if records is None:
            self.records = [fact.record() for fact in facts[:: max(1, len(facts) // limit)][:limit]]
        else:
            self.records = rome_fast.load_records(records, limit=limit)
        self.n_tokens = n_tokens
        hparams = rome_fast.RomeHparams.for_model(self.model)
        self.settings: dict[str, Any] = {
            "hparams": hparams,
            "second_moment": "identity",
            "context_templates": contexts_for(self.model, self.tok, hparams),
        }

    def batched(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """(seconds by phase, stage -> metric -> mean)."""
        started = time.perf_counter()
        found = rome_fast.evaluate(
            self.model,
            self.tok,
            self.records,
            generate_tokens=self.n_tokens,
            progress=False,
            **self.settings,
        )
        seconds = {phase: found.seconds.get(phase, 0.0) for phase in PHASES}
        seconds["total"] = time.perf_counter() - started
        means = {
            stage: {name: metric.mean for name, metric in metrics.items()}
            for stage, metrics in found.metrics.items()
        }
        return seconds, means

    def case_by_case(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """The same, one case after the other."""
        seconds, cases = dict.fromkeys(PHASES, 0.0), []
        started = time.perf_counter()
        for record in self.records:
            before = self._ask(record, seconds)
            lap = time.perf_counter()
            result = rome_fast.edit(self.model, self.tok, record.request, **self.settings)
            seconds["edit"] += time.perf_counter() - lap
            after = self._ask(record, seconds)
            result.revert()
            cases.append(
                {
                    "before": reference.values(before),
                    "after": reference.values(after, before),
                }
            )
        seconds["total"] = time.perf_counter() - started
        return seconds, {stage: reference.means(cases, stage) for stage in ("before", "after")}

    def _ask(self, record: Any, seconds: dict[str, float]) -> Any:
        lap = time.perf_counter()
        answers = reference.answers(self.model, self.tok, record)
        seconds["score"] += time.perf_counter() - lap
        lap = time.perf_counter()
        for prompt in (record.request.text, *record.generation_prompts) if self.n_tokens else ():
            ids = torch.tensor([self.tok(prompt)["input_ids"]])
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.n_tokens,
                do_sample=False,
                eos_token_id=None,
            )
        seconds["generate"] += time.perf_counter() - lap
        return answers


def largest_difference(
    ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]]
) -> float:
    """Of the metrics that both have, means over all cases."""
    return max(
        abs(ours[stage][name] - value) for stage in theirs for name, value in theirs[stage].items()
    )


def summary(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds of each way's seconds and of their ratio, by phase."""
    spent = [
        {
            way: {**seconds, "evaluation": seconds["score"] + seconds["generate"]}
            for way, seconds in done.items()
        }
        for done in rounds
    ]
    return {
        phase: {
            **{way: statistics.median(s[way][phase] for s in spent) for way in spent[0]},
            "ratio": statistics.median(
                s["case by case"][phase] / s["batched"][phase] for s in spent if s["batched"][phase]
            ),
        }
        for phase in (*PHASES, "evaluation", "total")
        if spent[0]["batched"][phase]
    }


def show(table: dict[str, Any]) -> None:
    columns = ("seconds", "batched", "case by case", "ratio")
    shown = Table(*columns, box=box.SIMPLE_HEAD)
    for phase, row in table.items():
        shown.add_row(phase, *(f"{row[name]:.3g}" for name in columns[1:]))
    Console(width=100).print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, help="a file that load_records reads")
    parser.add_argument("--limit", type=int, default=64, help="how many records")
    parser.add_argument("--generate-tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore", rome_fast.errors.EditWarning)
    bench = Bench(args.records, args.limit, args.generate_tokens)
    rounds, differences = [], []
    for _ in range(args.rounds):
        (ours, our_means), (theirs, their_means) = bench.batched(), bench.case_by_case()
        rounds.append({"batched": ours, "case by case": theirs})
        differences.append(largest_difference(our_means, their_means))
    table = summary(rounds)
    show(table)
    print(f"largest difference of a mean: {max(differences):.2g}")
    if args.out:
        report = {
            "setting": setting(),
            "records": "embedded model's facts" if args.records is None else args.records.name,
            **{name: vars(args)[name] for name in ("limit", "generate_tokens", "rounds")},
            "seconds": table,
            "largest_difference": max(differences),
            "means": our_means,
            "rounds_one_by_one": rounds,
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
