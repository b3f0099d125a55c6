"""What an edit asks of the host besides arithmetic: seconds, torch calls and waits of each phase.

    python -m benchmarks.edit.host_time --out benchmarks/results/host-time.json

The model is a GPT-2 of 48 blocks, as GPT-2 XL has, 64 wide: its arithmetic is next to nothing, so
what takes time is what a GPU would wait for. Requests differ in the lengths of subject and target;
C is given. A wait is a call after which the host knows a number that torch has computed. Searches
end after two steps, the phase "value": a GPU replays steps without the host.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich import print as say
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel

import rome_fast
from rome_fast.bench.setting import setting
from rome_fast.model.spec import ModelSpec
from rome_fast.moment.second_moment import SecondMoment
from rome_fast.timings import Timings

N_BLOCKS, WIDTH, LAYER, ROUNDS = 48, 64, 17, 5
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal"}
FACTS = {
    "Ray Charles": "violin",
    "Ada Lovelace": "piano",
    "The Eiffel Tower": "the old centre of Rome",
    "Rome": "tea",
    "LeBron James of Cleveland": "football",
    "Marie Curie": "physics and chemistry",
}
REQUESTS = [rome_fast.EditRequest("{} is known for the", *fact) for fact in FACTS.items()]
Ways = dict[str, Callable[[], list[rome_fast.EditResult]]]


class Calls(TorchDispatchMode):
    """While open, counts torch's calls and the host's waits, by the phase they are booked in."""

    def __init__(self) -> None:
        super().__init__()
        self.by_phase: dict[str, Counter[str]] = {}
        self._open: Counter[str] = Counter()

    def __enter__(self) -> Any:
        self._lap = Timings.lap
        Timings.lap = lambda timings, phase: self._booked(timings, phase)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Timings.lap = self._lap

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._open["calls"] += 1
        self._open["waits"] += func._schema.name in WAITS
        return func(*args, **(kwargs or {}))

    def _booked(self, timings: Timings, phase: str) -> None:
        self._lap(timings, phase)
        self.by_phase.setdefault(phase, Counter()).update(self._open)
        self._open.clear()


def ways() -> Ways:
    """Single edits, and many of one call; each is undone."""
    tok = rome_fast.demo.load()[1]
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tok), n_embd=WIDTH, n_layer=N_BLOCKS, n_head=4)
    model = GPT2LMHeadModel(config).eval()
    keys = torch.randn(4096, ModelSpec.of(model).down_projection(LAYER).d_key)
    hparams = rome_fast.RomeHparams.for_model(model)
    settings = {
        "hparams": hparams.replace(layers=[LAYER], v_num_grad_steps=2, compute_dtype="model"),
        "second_moment": SecondMoment.from_moment(keys.T @ keys / len(keys), len(keys)),
    }

    def one_by_one() -> list[rome_fast.EditResult]:
        results = [rome_fast.edit(model, tok, request, **settings) for request in REQUESTS]
        for result in reversed(results):
            result.revert()
        return results

    def many() -> list[rome_fast.EditResult]:
        with rome_fast.trial(model, tok, REQUESTS, progress=False, **settings) as results:
            return results

    return {"edit": one_by_one, "edit_many": many}


def measured(way: Callable[[], list[rome_fast.EditResult]]) -> dict[str, Any]:
    """Of one edit, by phase: median seconds of the rounds, calls and waits."""
    way()
    rounds = [way() for _ in range(ROUNDS)]
    with Calls() as calls:
        way()
    phases = {}
    for phase in rounds[0][-1].seconds:
        seconds = [
            statistics.fmean(r.seconds.get(phase, 0.0) for r in results) for results in rounds
        ]
        counts = calls.by_phase.get(phase, Counter())
        phases[phase] = {
            "milliseconds": round(1e3 * statistics.median(seconds), 2),
            **{what: round(counts[what] / len(REQUESTS), 1) for what in ("calls", "waits")},
        }
    return phases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    results = {name: measured(way) for name, way in ways().items()}
    say(results)
    report = {"setting": setting(), "requests": len(REQUESTS), "rounds": ROUNDS, "results": results}
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
