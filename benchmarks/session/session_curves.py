r"""How far a sequence of edits goes: each safeguard of a Session alone, all together, and none.

    python -m benchmarks.session.session_curves --out benchmarks/results/session-curves.json
    python -m benchmarks.session.session_curves --options --edits 300 \
        --out benchmarks/results/session-options.json

The same facts of the embedded model, about distinct subjects, are edited one after the other in
every way, each to the `target_new` it ships with. At each point on the way all edits made so far
are asked again: percent that answer the new object, and on paraphrases; percent of prompts about
subjects that are never edited with the unedited model's answer; perplexity of held texts, relative
to the unedited model. `alone` is the same for single edits of the unedited model.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import rome_fast
from benchmarks.edit.edit_order import distinct, neighbours, paraphrases
from benchmarks.support.results import write
from rome_fast import EditRequest, Guard, HealthCheck, Session
from rome_fast.bench.setting import setting
from rome_fast.evaluate.drift import Drift
from rome_fast.hparams import FORMS
from rome_fast.prompt.greedy import greedy_continuations
from rome_fast.prompt.ids import text_ids
from rome_fast.prompt.readback import read_targets
from rome_fast.prompt.target import find_target_ids

POINTS = (1, 10, 30, 60, 100, 150, 200, 250, 300, 350, 400, 450, 500)
UNGUARDED: dict[str, Any] = {"retain": 0.0, "stop_loss": 0.05, "guard": Guard(math.inf)}
WAYS: dict[str, dict[str, Any]] = {
    "kmeng01's update": {**UNGUARDED, "variant": "original"},
    "r-ROME": {**UNGUARDED, "variant": "mean_key"},
    "both_keys": UNGUARDED,
    "+ guard": {**UNGUARDED, "guard": Guard()},
    "+ anchor": {**UNGUARDED, "anchor": 16},
    "+ retain": {**UNGUARDED, "retain": 0.01},
    "+ stop_loss": {**UNGUARDED, "stop_loss": 0.3},
    "Session": {},
    "Session + anchor": {"anchor": 16},
}
# A Session with one option changed: --ways options.
OPTIONS: dict[str, dict[str, Any]] = {
    **{f"retain={weight:g}": {"retain": weight} for weight in (0.0, 1e-3, 0.01, 0.1, 1.0)},
    **{f"stop_loss={loss:g}": {"stop_loss": loss} for loss in (0.1, 0.2, 0.5)},
}
# A Session in each form: --forms.
IN_FORMS: dict[str, dict[str, Any]] = {
    **{form: {"form": form} for form in FORMS},
    "weight, solved as one": {"solve": "joint"},
}
FIGURES = ("success", "paraphrase", "neighbours", "perplexity")
# Sentences about subjects that are not edited, for perplexity.
N_TEXTS = 100
# Rows of one forward.
AT_ONCE = 128
Pair = tuple[str, str]  # a text and what it should go on with


class Bench:
    """The embedded model, the facts, and the questions."""

    def __init__(self, n_edits: int, n_neighbours: int, seed: int) -> None:
        self.model, self.tok, facts = rome_fast.demo.load()
        self.facts = distinct(facts, n_edits, seed)
        near = sorted({pair for fact in self.facts for pair in neighbours(fact)})
        # A subject that is edited ought to change.
        near = [pair for pair in near if not any(f.subject in pair[0] for f in self.facts)]
        self.near = self.answered(random.Random(seed).sample(near, min(n_neighbours, len(near))))
        edited = {fact.subject for fact in self.facts}
        held = [fact for fact in facts if fact.subject not in edited]
        held = random.Random(seed).sample(held, min(N_TEXTS, len(held)))
        texts = [f"{fact.prompt.replace('{}', fact.subject)} {fact.target}." for fact in held]
        self.drift = Drift.baseline(self.model, self.tok, texts)
        self.perplexity = self.drift.measure(self.model)["perplexity"]

    def answered(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The texts with what the model says now, in as many tokens as their targets have."""
        answers = []
        for text, target in pairs:
            prompt, n_tokens = (
                text_ids(self.tok, text),
                len(find_target_ids(self.tok, text, target)),
            )
            [said] = greedy_continuations(self.model, self.tok, [prompt], n_tokens)
            answers.append((text, said))
        return answers

    def obeyed(self, pairs: Sequence[Pair]) -> float:
        """Percent of texts whose greedy continuation is the target."""
        pairs = sorted(pairs, key=lambda pair: len(pair[0]))
        said: list[bool] = []
        for start in range(0, len(pairs), AT_ONCE):
            part = pairs[start : start + AT_ONCE]
            prompts = [text_ids(self.tok, text) for text, _ in part]
            targets = [[int(i) for i in find_target_ids(self.tok, *pair)] for pair in part]
            readings = read_targets(self.model, self.tok, prompts, targets)
            said += [reading.rank == 1 for reading in readings]
        return 100 * statistics.mean(said)

    def judge(self, facts: Sequence[Any], near: Sequence[Pair]) -> dict[str, float]:
        """The figures of edits of ``facts``, on the model as it is now."""
        requests = [request_of(fact) for fact in facts]
        return {
            "success": self.obeyed([(r.text, r.target) for r in requests]),
            "paraphrase": self.obeyed([pair for fact in facts for pair in paraphrases(fact)]),
            "neighbours": self.obeyed(near),
            "perplexity": self.drift.measure(self.model)["perplexity"] / self.perplexity,
        }

    def curve(self, way: dict[str, Any]) -> list[dict[str, Any]]:
        """A row at every point of one way; the model is as before on return."""
        rows = []
        options = {"form": "weight", "solve": "sequential", "health": HealthCheck(every=0), **way}
        with Session(self.model, self.tok, **options) as session:
            weight = self.model.get_parameter(next(iter(session.log.base.edited)))
            before = weight.detach().clone()
            for n, fact in enumerate(self.facts, 1):
                session.edit(request_of(fact))
                if n in POINTS or n == len(self.facts):
                    moved = float((weight - before).norm() / before.norm())
                    figures = self.judge(self.facts[:n], self.near)
                    rows.append({"edits": n, **figures, "relative_norm": moved})
            session.undo(len(self.facts))
        return rows

    def alone(self, n_edits: int) -> dict[str, float]:
        """Means over single edits of the unedited model by ``rome_fast.edit``, undone each."""
        rows = []
        chosen = random.Random(0)
        for fact in self.facts[:n_edits]:
            with rome_fast.trial(self.model, self.tok, request_of(fact)):
                rows.append(self.judge([fact], chosen.sample(self.near, min(40, len(self.near)))))
        return {figure: statistics.mean(row[figure] for row in rows) for figure in FIGURES}


def request_of(fact: Any) -> EditRequest:
    return EditRequest(fact.prompt, fact.subject, fact.target_new)


def show(curves: dict[str, list[dict[str, Any]]], alone: dict[str, float], at: int) -> None:
    table = Table("", *FIGURES, "norm", title=f"after {at} edits", box=box.SIMPLE_HEAD)
    table.add_row("one edit", *(f"{alone[figure]:.4g}" for figure in FIGURES), "")
    for name, rows in curves.items():
        row = next((row for row in rows if row["edits"] == at), None)
        if row:
            figures = (f"{row[figure]:.4g}" for figure in FIGURES)
            table.add_row(name, *figures, f"{row['relative_norm']:.3g}")
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=500)
    parser.add_argument("--neighbours", type=int, default=400, help="prompts of other subjects")
    parser.add_argument("--seed", type=int, default=0, help="which facts are drawn")
    parser.add_argument("--options", action="store_true", help="a Session's options, not the ways")
    parser.add_argument("--forms", action="store_true", help="a Session in each form")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    warnings.simplefilter("ignore", rome_fast.errors.EditWarning)
    bench = Bench(args.edits, args.neighbours, args.seed)
    alone = bench.alone(min(200, args.edits))
    bits = bench.judge(bench.facts, bench.near)
    curves = {}
    ways = OPTIONS if args.options else IN_FORMS if args.forms else WAYS
    for name, way in ways.items():
        curves[name] = bench.curve(way)
        assert bench.judge(bench.facts, bench.near) == bits, "the model is not what it was"
        for at in (200, args.edits):
            show(curves, alone, at)
    if args.out:
        report = {
            "setting": setting(),
            **{name: vars(args)[name] for name in ("edits", "seed")},
            "n_neighbours": len(bench.near),
            "n_texts": N_TEXTS,
            "ways": {name: {k: str(v) for k, v in way.items()} for name, way in ways.items()},
            "alone": alone,
        }
        rows = [{"way": name, **row} for name in curves for row in curves[name]]
        write(args.out, report, rows, "points")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
