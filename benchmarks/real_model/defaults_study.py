"""Which hyper-parameters serve a real model: layers, contexts, rates, steps, clamps, variants.

    python -m benchmarks.real_model.defaults_study --work FOLDER --records 48 --layers 1 2 3
    python -m benchmarks.real_model.defaults_study --work FOLDER --records 200 --layers 3 \
        --change '{"v_lr": 0.25}' '{"v_stop_loss": 0.2}'

Each record is edited alone. A candidate is a layer and a change of the base settings; its rows are
a line of ``candidates.jsonl`` in the folder, so that a run that is cut off goes on where it was.
C is the same for all candidates of a layer: 12,288 keys of WikiText and a tenth of their mean
diagonal.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import rome_fast
from benchmarks.real_model.judging import RealModelJudge, interval, means, paired_interval
from benchmarks.real_model.records import known_records
from benchmarks.real_model.values import find_values
from benchmarks.support.results import SHARED
from rome_fast.bench.setting import setting
from rome_fast.errors import EditRejectedError
from rome_fast.hparams import RomeHparams, defaults_for
from rome_fast.model.open_model import open_model
from rome_fast.moment.collect.collector import collect_second_moment
from rome_fast.moment.second_moment import SecondMoment
from rome_fast.update.joint import solve_updates
from rome_fast.value import window

# Fewer contexts than twenty, and larger batches than an edit takes, are four times as fast.
BASE = {"context_template_length_params": [[5, 3], [10, 2]]}
window.BATCH_BYTES["cpu"] = 2**28
TOKENS = 12288


class Study:
    def __init__(self, work: Path, n_records: int) -> None:
        self.model, self.tok, _ = rome_fast.demo.load("smollm2")
        self.model.requires_grad_(False)
        self.work = work
        # Facts that the model says by itself, then those among its ten likeliest words.
        known = known_records(self.model, self.tok, work / "ranks.json", within=10)
        self.records = known[:n_records]
        self._moments: dict[int, SecondMoment] = {}

    def moment(self, layer: int) -> SecondMoment:
        if layer not in self._moments:
            text = (SHARED / "wikitext" / "wikipedia-paragraphs.txt").read_text(encoding="utf-8")
            lines = [line for line in text.splitlines() if line.strip()]
            random.Random(0).shuffle(lines)
            found = collect_second_moment(
                self.model, self.tok, lines, layer, tokens=TOKENS, damping=0.1, progress=False
            )
            self._moments[layer] = found[layer]
        return self._moments[layer]

    def hparams(self, layer: int, change: dict[str, Any]) -> RomeHparams:
        """Derived for the layer, with the base and the candidate's own change."""
        with open_model(self.model) as spec:
            hparams, _ = defaults_for(spec, layer)
        return hparams.replace(**{**BASE, **change})

    def run(self, layer: int, change: dict[str, Any]) -> dict[str, Any]:
        hparams = self.hparams(layer, change)
        found = find_values(
            *(self.model, self.tok, self.records, hparams, self.work / "values"), window=16
        )
        with open_model(self.model) as spec:
            projection = spec.down_projection(layer)
        updates = []
        for f in found:
            try:
                made = solve_updates(
                    projection, [f.constraint(hparams.variant)], self.moment(layer)
                )
                updates += made
            except EditRejectedError:
                updates.append(None)
        rows = RealModelJudge(self.model, self.tok, projection, self.records)(updates)
        norm = float(projection.weight.norm())
        for row, f, update in zip(rows, found, updates, strict=True):
            row["norm"] = None if update is None else update.norm / norm
            row |= {"steps": len(f.losses), "loss": f.losses[-1], "seconds": f.seconds}
        return {"layer": layer, "change": change, "records": len(rows), "rows": rows}


def report(work: Path) -> dict[str, Any]:
    """Every candidate that was tried, the last line of those that were tried twice.

    Differences are paired, over the records that a candidate shares with the base of its layer.
    """
    lines = [json.loads(line) for line in (work / "candidates.jsonl").open(encoding="utf-8")]
    found: dict[tuple[int, str, int], dict[str, Any]] = {}
    for line in lines:
        found[line["layer"], json.dumps(line["change"], sort_keys=True), line["records"]] = line
    largest: dict[int, list[dict[str, Any]]] = {}
    for (layer, change, _), line in found.items():
        if change == "{}" and line["records"] > len(largest.get(layer, ())):
            largest[layer] = line["rows"]
    cells = []
    for (layer, change, n), line in sorted(found.items()):
        cell = {"layer": layer, "change": line["change"], "records": n, **summary(line["rows"])}
        for name in ("PS", "NS", "unchanged"):
            cell[f"{name}_interval"] = interval(line["rows"], name)
        base = largest.get(layer, ())
        if change != "{}" and len(base) >= n:
            for name in ("PS", "NS", "unchanged"):
                cell[f"{name}_beyond_base"] = paired_interval(line["rows"], base[:n], name)
        cells.append(cell)
    return {"setting": setting(), "base": BASE, "keys": TOKENS, "cells": cells}


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    taken = [row for row in rows if row["norm"] is not None]
    found = means([{k: v for k, v in row.items() if k != "refused"} for row in taken])
    seconds = statistics.median(row["seconds"] for row in rows)
    return {**found, "refused": len(rows) - len(taken), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--records", type=int, default=48)
    parser.add_argument("--layers", type=int, nargs="*", default=[])
    parser.add_argument("--change", type=json.loads, nargs="*", default=[{}])
    parser.add_argument("--out", type=Path, help="write what all runs in the folder found")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.layers:
        run(args)
    if args.out:
        args.out.write_text(json.dumps(report(args.work), indent=1) + "\n", encoding="utf-8")


def run(args: argparse.Namespace) -> None:
    """Every change in every layer."""
    study = Study(args.work, args.records)
    for layer in args.layers:
        for change in args.change:
            began = time.perf_counter()
            made = study.run(layer, change)
            with (args.work / "candidates.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(made) + "\n")
            said = {k: round(v, 3) for k, v in summary(made["rows"]).items()}
            print(layer, change, said, f"{time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
