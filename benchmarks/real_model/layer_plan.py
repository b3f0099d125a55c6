"""Which layer the product itself finds for the real model, and in how many minutes.

    python -m benchmarks.real_model.layer_plan --work FOLDER \
        --out benchmarks/results/real-model-layer-plan.json

``suggest_layer`` on tens of facts that the model knows, and ``probe`` on its own one, each with
nothing cached but C. docs/decisions.md has the layers that are right, found with 200 facts.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import rome_fast
from benchmarks.real_model.records import known_records
from rome_fast.bench.setting import setting

N_FACTS = 7


def planned(model: Any, tok: Any, records: list[Any]) -> dict[str, Any]:
    began = time.perf_counter()
    plan = rome_fast.suggest_layer(model, tok, records, progress=False)
    return {"seconds": time.perf_counter() - began, **plan.to_dict()}


def probed(model: Any, tok: Any) -> dict[str, Any]:
    began = time.perf_counter()
    found = rome_fast.probe(model, tok, progress=False)
    return {"seconds": time.perf_counter() - began, "editable": found.editable}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model, tok, _ = rome_fast.demo.load("smollm2")
    known = known_records(model, tok, args.work / "ranks.json", within=10)
    report: dict[str, Any] = {"setting": setting(), "threads": torch.get_num_threads()}
    report["probe"] = probed(model, tok)
    report["plans"] = []
    for i in range(args.times):
        part = known[i * N_FACTS : (i + 1) * N_FACTS]
        report["plans"].append(planned(model, tok, part))
        print(report["plans"][-1]["layer"], report["plans"][-1]["seconds"], flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
