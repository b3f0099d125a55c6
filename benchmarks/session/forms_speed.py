"""What edits beside the MLP cost: statistics of a first edit, rows, and generation, in turns.

    python -m benchmarks.session.forms_speed --out benchmarks/results/forms-speed.json

The offsets are of true tokens of ordinary text, as many as are asked for; how fast they run does
not depend on what they say.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import rome_fast
from rome_fast.bench.setting import setting
from rome_fast.beside.entry import Entry, collect_entry
from rome_fast.beside.module import Beside
from rome_fast.hparams import RomeHparams
from rome_fast.model.open_model import open_model
from rome_fast.model.units import HiddenUnits
from rome_fast.moment.collect.ordinary import ORDINARY_TEXT
from rome_fast.types import EditRequest, Offset, Signature

SIZES, FORMS = (1, 1000), ("neuron", "gate")
ROUNDS, NEW_TOKENS = 7, 48


def offsets(entry: Entry, form: str, n: int, d_value: int) -> list[Offset]:
    """Subjects that are tokens of the sample, each with a second one as its other context."""
    drawn = torch.Generator().manual_seed(0)
    made = []
    for i in range(n):
        own = entry.sample[[i, (i + 1) % len(entry.sample)]]
        names = {f"subject {i}": Signature(own, own.mean(0) / own.mean(0).square().sum())}
        delta = 1e-3 * torch.randn(d_value, generator=drawn)
        made.append(Offset(form, EditRequest("{} is", f"subject {i}", "so"), names, delta))
    return made


def seconds_of(model: Any, ids: torch.Tensor) -> float:
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    began = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, tok, _ = rome_fast.demo.load("smollm2")
    with open_model(model) as spec:
        units = HiddenUnits.of(spec, spec.down_projection(RomeHparams.for_model(model).layer))
        began = time.perf_counter()
        entry = collect_entry(spec, tok, units, ORDINARY_TEXT)
        report: dict[str, Any] = {"setting": setting(), "entry_s": time.perf_counter() - began}
    d_value, beside = units.projection.d_value, Beside(units, entry)
    ids = tok("The history of the city begins", return_tensors="pt")["input_ids"]
    lines = []
    for form in FORMS:
        for n in SIZES:
            crowd = offsets(entry, form, n, d_value)
            began = time.perf_counter()
            beside.set(crowd)
            line: dict[str, Any] = {"form": form, "n": n, "rows_s": time.perf_counter() - began}
            pairs = []
            for _ in range(ROUNDS):
                beside.set([])
                plain = seconds_of(model, ids)
                beside.set(crowd)
                pairs.append((plain, seconds_of(model, ids)))
            ratios = sorted(plain / edited for plain, edited in pairs)
            line["tokens_per_s"] = NEW_TOKENS / statistics.median(e for _, e in pairs)
            line["share_of_speed"] = statistics.median(ratios)
            line["share_of_speed_range"] = [ratios[1], ratios[-2]]
            lines.append(line)
            print(line, flush=True)
            beside.set([])
    args.out.write_text(json.dumps({**report, "lines": lines}, indent=1) + "\n", encoding="utf-8")
    print(report["entry_s"])


if __name__ == "__main__":
    main()
