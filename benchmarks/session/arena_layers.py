"""The arena in other layers: how edits that only fire for their subject do there.

    python -m benchmarks.session.arena_layers --work FOLDER \
        --out benchmarks/results/arena-layers.json

Few facts are searched in each layer; further subjects, with the values of these, make the crowd.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

from benchmarks.session.arena import Arena, Row, summary
from rome_fast.bench.setting import setting

LAYERS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--searched", type=int, default=16)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    about = {name: vars(args)[name] for name in ("searched", "n", "texts")}
    report = {"setting": setting(), **about, "layers": {}}
    for layer in args.layers:
        arena = Arena(args.work, layer, args.searched, args.searched, args.texts)
        rows = [arena.alone("weight"), *(arena.run(form, args.n) for form in ("neuron", "gate"))]
        records = arena.facts.records
        unedited: Row = {"form": "unedited", "n": 0, "rows": arena.judge.unedited()}
        report["unedited"] = summary(unedited, arena.judge.records, [])
        lines = [summary(row, arena.judge.records, records[: row["n"]]) for row in rows]
        report["layers"][str(layer)] = lines
        print(layer, *lines, sep="\n", flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
