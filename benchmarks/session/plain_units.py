"""The one row that a plain MLP has for a subject: how much of w and of p, and its threshold.

    python -m benchmarks.session.plain_units --out benchmarks/results/plain-units.json

Facts of the embedded model, each a neuron, with every choice. "Company": texts, of those in which
a subject's last words stand in other company, where the edit is heard, as its result says.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch

import rome_fast
from benchmarks.session.session_curves import Bench, request_of
from rome_fast import HealthCheck, Session
from rome_fast.bench.setting import setting
from rome_fast.beside import rows

CHOICES = ((0.5, 0.5), (0.5, 0.35), (0.75, 0.5), (0.75, 0.35), (0.75, 0.25), (1.0, 0.5))
_HEARD = re.compile(r"heard in (\d+) of (\d+) such texts")


def measured(bench: Bench, w: float, share: float) -> dict[str, Any]:
    """One choice; the model is as before on return."""
    rows.PLAIN_W, rows.PLAIN_SHARE = w, share
    heard, texts = 0, 0
    with Session(bench.model, bench.tok, form="neuron", health=HealthCheck(every=0)) as session:
        for fact in bench.facts:
            said = _HEARD.search(" ".join(session.edit(request_of(fact)).warnings))
            heard += int(said[1]) if said else 0
            texts = int(said[2]) if said else texts
        row = {"w": w, "share": share, **bench.judge(bench.facts, bench.near)}
        session.undo(len(bench.facts))
    return {**row, "company": heard / (texts * len(bench.facts))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=150)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore", rome_fast.errors.EditWarning)
    bench = Bench(args.edits, 200, 0)
    report: dict[str, Any] = {"setting": setting(), "edits": args.edits, "rows": []}
    for w, share in CHOICES:
        report["rows"].append(measured(bench, w, share))
        print(report["rows"][-1], flush=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
