"""What a sequence in exact order could save by searching ahead: passes through the model.

    python -m benchmarks.value.look_ahead --work FOLDER --out benchmarks/results/look-ahead.json

The values of a window are searched on the weights before it. Then its facts are edited one after
the other, each searched on the weights that those before it left: from zero, as ``order="exact"``
does, and from what was found ahead. The edits written are the latter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.value.candidates import CANDIDATES, search
from benchmarks.value.problem import Problem
from benchmarks.value.study import Study
from rome_fast.bench.setting import setting
from rome_fast.model.open_model import open_model
from rome_fast.model.precision import Bfloat16Weights
from rome_fast.prompt.encode import encode
from rome_fast.update.joint import solve_updates
from rome_fast.update.solve import build_constraint

WAY = CANDIDATES["lbfgs, stop .1, fragments, bfloat16"]
Row = dict[str, Any]


def rows_of(study: Study, window: int) -> list[Row]:
    """Of every fact: passes from zero, and from what was found ahead."""
    hparams = study.hparams.replace(**WAY.hparams)
    weight, rows = study.projection.weight, []
    before = weight.detach().clone()

    def problem(record: Any) -> Problem:
        edit = encode(study.tok, record.request, study.contexts["fragments"], hparams.fact_token)
        return Problem(spec, study.projection, hparams, edit, weights.current())

    for start in range(0, len(study.records), window):
        part = study.records[start : start + window]
        with open_model(study.model) as spec:
            weights = Bfloat16Weights(spec, study.projection)
            ahead = [search(problem(record), WAY).delta for record in part]
        for i, record in enumerate(part):
            with open_model(study.model) as spec:
                weights = Bfloat16Weights(spec, study.projection)
                cold, warm = problem(record), problem(record)
                from_zero, found = search(cold, WAY), search(warm, WAY, ahead[i])
                constraint = build_constraint(hparams.variant, warm.keys, found.delta)
                [update] = solve_updates(study.projection, [constraint], study.moment)
            with torch.no_grad():
                weight.add_(update.dense().to(weight))
            cosine = torch.cosine_similarity(from_zero.delta, found.delta, dim=0)
            rows.append(
                {
                    "case_id": record.case_id,
                    "place": i,
                    "from zero": cold.passes,
                    "from ahead": warm.passes,
                    "cosine": float(cosine),
                    "losses": [from_zero.loss, found.loss],
                }
            )
            print(rows[-1], flush=True)
    with torch.no_grad():
        weight.copy_(before)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--records", type=int, default=40)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = rows_of(Study(args.work, args.records), args.window)
    report = {
        "setting": setting(),
        "window": args.window,
        "mean passes": {
            name: statistics.fmean(row[name] for row in rows)
            for name in ("from zero", "from ahead")
        },
        "median cosine": statistics.median(row["cosine"] for row in rows),
        "rows": rows,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
