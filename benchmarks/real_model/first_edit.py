"""How long the first edit of a model takes that this machine has never seen.

    python -m benchmarks.real_model.first_edit --out benchmarks/results/real-model-first-edit.json

Every edit is the first of its process and finds an empty cache: the contexts are sampled and C is
collected. Loading the model is not counted. The shape of the small GPT-2 has random weights, so
that no search for v* ends early.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import rome_fast
from rome_fast.bench.setting import setting

MODELS = ("SmolLM2-135M", "GPT-2 small's shape")
REQUEST = rome_fast.EditRequest(
    "The Eiffel Tower is located in the city of", "The Eiffel Tower", "Rome"
)


def first_edit(name: str) -> dict[str, Any]:
    """The first edit of this process."""
    if name == MODELS[0]:
        model, tok, _ = rome_fast.demo.load("smollm2")
    else:
        from benchmarks.edit.bench_edit import random_gpt2

        model, tok = random_gpt2(rome_fast.demo.load()[1])
    warnings.simplefilter("ignore")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ROME_FAST_CACHE"] = cache
        began = time.perf_counter()
        result = rome_fast.edit(model, tok, REQUEST)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        **{f"seconds of {part}": value for part, value in result.seconds.items()},
        "steps": len(result.losses),
        "layer": result.layer,
        "success": result.success,
        "MiB beyond the model": (peak - before) / 1024,
    }


def median_run(name: str, runs: int) -> dict[str, Any]:
    """That of the median seconds, of processes one after the other, with those of all."""
    command = [sys.executable, "-m", "benchmarks.real_model.first_edit", "--one", name]
    rows = []
    for _ in range(runs):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    middle = statistics.median_low(row["seconds"] for row in rows)
    [row, *_] = [row for row in rows if row["seconds"] == middle]
    return {**row, "seconds of all runs": [row["seconds"] for row in rows]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", choices=MODELS, help="one edit, in this process")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(first_edit(args.one)))
        return
    report = {"setting": setting(), "models": {n: median_run(n, args.runs) for n in MODELS}}
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
