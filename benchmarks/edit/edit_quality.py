"""How well edits work on the embedded model: success, paraphrase, neighbours, update norms.

    python -m benchmarks.edit.edit_quality --edits 200 --out benchmarks/results/edit-quality.json

Each fact is edited alone, on the unedited model, to the `target_new` it ships with. v* is the same
for all variants but `original`, which stops by another rule; it is optimised once for each rule.
The weight written and what the model then says are those of `rome_fast.edit` (checked at the
start, on one fact).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import rome_fast
from benchmarks.support.results import write
from rome_fast.bench.setting import setting
from rome_fast.hparams import VARIANTS
from rome_fast.model.spec import ModelSpec
from rome_fast.moment.collect.resolve import resolve_second_moment
from rome_fast.prompt.contexts import contexts_for
from rome_fast.prompt.encode import TokenizedEdit, encode
from rome_fast.prompt.greedy import greedy_continuations
from rome_fast.prompt.target import find_target_ids
from rome_fast.update.solve import apply_update_, build_constraint
from rome_fast.update.undo import WeightHistory
from rome_fast.value.batch import EditBatch
from rome_fast.value.first_pass import FirstPass, run_first_pass
from rome_fast.value.key import Keys, mean_keys
from rome_fast.value.optimize import Value, optimize_values


@dataclass(frozen=True, eq=False)
class Started:
    """One request after its first pass."""

    batch: EditBatch
    first: FirstPass
    keys: Keys

    @classmethod
    def on(cls, bench: Bench, tokens: TokenizedEdit) -> Started:
        batch = EditBatch.of([tokens])
        first = run_first_pass(bench.spec, bench.projection, batch)
        return cls(batch, first, mean_keys(bench.projection, batch, first)[0])


class Bench:
    """The embedded model, its second moment and contexts, shared by all edits."""

    def __init__(self, hparams: dict[str, Any], second_moment: str | None) -> None:
        self.model, self.tok, self.facts = rome_fast.demo.load()
        self.hparams = rome_fast.RomeHparams.for_model(self.model).replace(**hparams)
        self.model.requires_grad_(False)
        self.spec = ModelSpec.of(self.model)
        self.projection = self.spec.down_projection(self.hparams.layer)
        self.moment = resolve_second_moment(
            second_moment, self.spec, self.tok, self.projection, torch.float32
        )
        self.contexts = contexts_for(self.model, self.tok, self.hparams)

    def says(self, text: str, target: str) -> str:
        """Greedy continuation of a text, as many tokens as the target has."""
        n_tokens = len(find_target_ids(self.tok, text, target))
        ids = list(self.tok(text)["input_ids"])
        return greedy_continuations(self.model, self.tok, [ids], n_tokens)[0].strip()

    def edit(self, fact: Any, variants: list[str]) -> list[dict[str, Any]]:
        """One fact under every variant; the weights are as before on return."""
        request = rome_fast.EditRequest(fact.prompt, fact.subject, fact.target_new)
        tokens = encode(self.tok, request, self.contexts, self.hparams.fact_token)
        started = Started.on(self, tokens)
        near = [(p.prompt, p.target) for p in fact.neighborhood_prompts]
        near_before = [self.says(*pair) for pair in near]
        history = WeightHistory(self.projection, "torch")
        weight_norm = float(self.projection.weight.norm())
        values: dict[bool, tuple[Value, float]] = {}
        rows = []
        for variant in variants:
            rule = variant == "original"
            if rule not in values:
                values[rule] = self.optimize(started, variant)
            value, seconds = values[rule]
            constraint = build_constraint(variant, started.keys, value.value_delta)
            update = apply_update_(history, constraint, self.moment)
            near_after = [self.says(*pair) for pair in near]
            target = fact.target_new
            rows.append(
                {
                    "case_id": fact.case_id,
                    "variant": variant,
                    "success": self.says(request.text, target) == target,
                    "paraphrase": [self.says(t, target) == target for t in fact.paraphrase_prompts],
                    "neighbours": [a == b for a, b in zip(near_before, near_after, strict=True)],
                    "relative_norm": update.norm / weight_norm,
                    "loss": value.losses[-1],
                    "steps": len(value.losses),
                    "seconds_value": seconds,
                }
            )
            history.rewind(0)
        return rows

    def optimize(self, started: Started, variant: str) -> tuple[Value, float]:
        """v* by the stop rule of a variant, and the seconds it took."""
        begin = time.perf_counter()
        hparams = self.hparams.replace(variant=variant)
        value_init = started.keys.value_init[None]
        [value] = optimize_values(
            self.spec, self.projection, started.batch, started.first, value_init, hparams
        )
        return value, time.perf_counter() - begin

    def check_against_edit(self, fact: Any) -> None:
        """The update written here is the one that rome_fast.edit writes."""
        request = rome_fast.EditRequest(fact.prompt, fact.subject, fact.target_new)
        with rome_fast.trial(
            self.model,
            self.tok,
            request,
            self.hparams,
            second_moment="identity" if self.moment is None else self.moment,
            backend="torch",
        ) as result:
            norm = result.update_norm / result.weight_norm
        [row] = self.edit(fact, [self.hparams.variant])
        assert abs(row["relative_norm"] - norm) < 1e-5 * norm, (row["relative_norm"], norm)
        assert row["success"] == result.success


def summarise(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Shares in percent; norms relative to the weight's."""
    norms = [row["relative_norm"] for row in rows]
    median = statistics.median(norms)
    flat = {k: [x for row in rows for x in row[k]] for k in ("paraphrase", "neighbours")}
    return {
        "success": 100 * statistics.mean(row["success"] for row in rows),
        "paraphrase": 100 * statistics.mean(flat["paraphrase"]),
        "neighbours_unchanged": 100 * statistics.mean(flat["neighbours"]),
        "norm_median": median,
        "norm_max": max(norms),
        "norm_above_10x_median": sum(norm > 10 * median for norm in norms),
        "loss_median": statistics.median(row["loss"] for row in rows),
        "steps_median": statistics.median(row["steps"] for row in rows),
        "seconds_value_median": statistics.median(row["seconds_value"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="which facts are drawn")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--second-moment", default=None, help="'identity' or a file")
    parser.add_argument("--hparams", type=json.loads, default={}, help="JSON of changed fields")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    warnings.simplefilter("ignore", rome_fast.errors.EditWarning)
    bench = Bench(args.hparams, args.second_moment)
    facts = random.Random(args.seed).sample(bench.facts, args.edits)
    bench.check_against_edit(facts[0])
    rows = []
    for number, fact in enumerate(facts, 1):
        rows += bench.edit(fact, args.variants)
        if number % 20 == 0:
            done = [row for row in rows if row["variant"] == args.variants[0]]
            print(number, {k: round(v, 3) for k, v in summarise(done).items()}, flush=True)
    table = {v: summarise([r for r in rows if r["variant"] == v]) for v in args.variants}
    for variant, summary in table.items():
        print(f"{variant:12}", {k: round(v, 3) for k, v in summary.items()})
    if args.out:
        report = {
            "setting": setting(),
            "edits": args.edits,
            "seed": args.seed,
            "hparams": vars(bench.hparams),
            "second_moment": "identity" if bench.moment is None else str(bench.moment),
            "summary": table,
        }
        write(args.out, report, rows)


if __name__ == "__main__":
    main()
