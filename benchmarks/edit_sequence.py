"""How a long sequence of edits of the embedded model holds: one after the other, judged on the way.

    python benchmarks/edit_sequence.py --out benchmarks/results/edit-sequence.json

Facts about distinct subjects, each edited to the `target_new` it ships with, in exact order and
with default settings; contexts and second moment are those of the unedited model throughout. Every
hundred edits all made so far are asked again. Neighbours are the prompts that ship with the facts
and are about no edited subject; unchanged is the answer of the unedited model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edit_order import Orders, Pair, agreement, paraphrases

import rome_fast
from rome_fast.bench.setting import setting
from rome_fast.evaluate.records import Question
from rome_fast.evaluate.scoring import score


class LongRun(Orders):
    """The facts, and what the model says of them as their edits add up."""

    def run(self, every: int) -> list[dict[str, Any]]:
        weight = self.projection.weight.detach().clone()
        rows = []
        for start in range(0, len(self.requests), every):
            made = rome_fast.edit_many(
                self.model,
                self.tok,
                self.requests[start : start + every],
                self.hparams,
                second_moment=self.moment,
                context_templates=self.contexts,
            )
            facts = self.facts[: start + len(made)]
            asked = [(r.text, r.target) for r in self.requests[: len(facts)]]
            moved = self.projection.weight.detach() - weight
            rows.append(
                {
                    "edits": len(facts),
                    "success_at_once": 100 * statistics.mean(r.success for r in made),
                    "success_now": self.said(asked),
                    "paraphrase_now": self.said([p for f in facts for p in paraphrases(f)]),
                    "neighbours": agreement(self.answers(self.near), self.near_before),
                    "relative_norm": float(moved.norm() / weight.norm()),
                    "relative_norm_of_updates": statistics.median(r.relative_norm for r in made),
                }
            )
            print({key: round(value, 3) for key, value in rows[-1].items()}, flush=True)
        return rows

    def said(self, pairs: Sequence[Pair]) -> float:
        """Percent of texts that greedy decoding goes on with their targets."""
        scores = score(self.model, self.tok, [Question(*pair) for pair in pairs])
        return 100 * statistics.mean(s.exact for s in scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100, help="edits between two judgements")
    parser.add_argument("--seed", type=int, default=0, help="which facts are drawn")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    warnings.simplefilter("ignore", rome_fast.errors.EditWarning)
    bench = LongRun(args.edits, args.seed)
    report = {
        "setting": setting(),
        **{name: vars(args)[name] for name in ("edits", "every", "seed")},
        "hparams": vars(bench.hparams),
        "second_moment": str(bench.moment),
        "n_neighbours": len(bench.near),
        "results": bench.run(args.every),
    }
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
