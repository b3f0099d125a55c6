"""The arena in other orders, and with facts that are edited again to something else.

    python -m benchmarks.session.arena_orders --work FOLDER \
        --out benchmarks/results/arena-orders.json
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

from benchmarks.session.arena import Arena, summary
from rome_fast.bench.setting import setting
from rome_fast.hparams import FORMS

ORDERS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--again", type=int, default=75, help="facts that are edited twice")
    parser.add_argument("--judged", type=int, default=80)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    arena = Arena(args.work, None, args.judged, args.n, args.texts)
    about = {name: vars(args)[name] for name in ("n", "texts")}
    report = {"setting": setting(), **about, "lines": []}
    streams = [(order, 0) for order in ORDERS] + [(ORDERS[-1], args.again)]
    records = arena.facts.records
    for form in FORMS:
        for order, again in streams:
            row = {"order": order, "again": again, **arena.run(form, args.n, order, again)}
            report["lines"].append(summary(row, arena.judge.records, records[: args.n]))
            print(report["lines"][-1], flush=True)
            args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
