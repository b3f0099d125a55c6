"""Edits solved as one, with a C that knows more of names, or of the user's own prompts.

    python -m benchmarks.session.policy_moments --work FOLDER --sizes 80 300 \
        --out benchmarks/results/policy-moments.json

C is the mean of k k^T over ordinary text. Here the mean over other keys is added, as a share of C's
trace: where names end, or everywhere in the edits' prompts about other subjects, which stands for
prompts that a user wants kept. For each C lam is that share of the median k . C^-1 k that it is for
a Session.
"""

from __future__ import annotations

import argparse
import json
import random
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.session.arena import Arena, Row, summary
from benchmarks.session.arena_policies import problem_of, spread, written
from benchmarks.session.arena_stream import stream
from benchmarks.session.policies import joint
from rome_fast.bench.setting import setting
from rome_fast.model.activations import read_activations
from rome_fast.model.open_model import open_model
from rome_fast.prompt.ids import all_text_ids, pad_right
from rome_fast.session.others import about_others
from rome_fast.update.softness import softness

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.session.arena_facts import ArenaFacts

N_NAMES, N_PROMPTS = 500, 300
# What is added to C, and its trace as a share of C's.
WAYS = [("C", 0.0), *((kind, share) for kind in ("names", "prompts") for share in (0.1, 1.0, 10.0))]


def further(facts: ArenaFacts, kind: str) -> Tensor:
    """E k k^T, float64, over the ends of names or over all tokens of prompts."""
    if kind == "names":
        texts = [f"He met {r.request.subject}" for r in facts.records[-N_NAMES:]]
    else:
        requests = [record.request for record in facts.records[:300]]
        texts = about_others(requests, N_PROMPTS, random.Random(0))
    total, n = torch.zeros(()).double(), 0
    for start in range(0, len(texts), 50):
        input_ids, mask = pad_right(all_text_ids(facts.tok, texts[start : start + 50]))
        keys, _ = read_activations(facts.model, facts.projection, input_ids, mask)
        if kind == "names":
            keys = keys[torch.arange(len(mask)), mask.sum(1) - 1]
        else:
            mask[:, 0] = 0  # the first token is the attention's sink
            keys = keys[mask.bool()]
        total, n = total + keys.double().T @ keys.double(), n + len(keys)
    return total / n


def lines(arena: Arena, sizes: list[int]) -> list[Row]:
    """One a way and size."""
    facts = arena.facts
    with open_model(facts.model) as spec:
        lam = softness(spec, facts.tok, facts.projection, facts.moment)
    made = []
    for n in sizes:
        plain = problem_of(facts, stream(n, n))
        lengths = _lengths(plain.moment, plain.prompt_keys)
        for kind, share in WAYS:
            moment = plain.moment
            if share:
                more = further(facts, kind)
                moment = moment + more * (share * moment.trace() / more.trace())
            own = lam * _lengths(moment, plain.prompt_keys) / lengths
            delta = joint(replace(plain, moment=moment), own, "prompt")
            row = {"form": f"{kind}, {share:g}" if share else kind, "n": n, "lam": own}
            row["spread"] = spread(plain, delta)
            with written(facts.projection.weight, delta):
                row |= arena.judged(n)
            made.append(summary(row, arena.judge.records, facts.records[:n]))
            print({k: v for k, v in made[-1].items() if k != "intervals"}, flush=True)
    return made


def _lengths(moment: Tensor, keys: Tensor) -> float:
    """The median k . C^-1 k."""
    return float((keys * torch.linalg.solve(moment, keys.T).T).sum(1).median())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[80, 300])
    parser.add_argument("--judged", type=int, default=80)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    arena = Arena(args.work, None, args.judged, 300, args.texts)
    report = {"setting": setting(), "texts": args.texts, "lines": lines(arena, args.sizes)}
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
