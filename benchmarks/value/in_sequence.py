"""What searches for v* leave behind when many facts are edited in one weight.

    python -m benchmarks.value.in_sequence --work FOLDER \
        --out benchmarks/results/value-sequence.json

The facts, the order and the judges are those of ``benchmarks.real_model.sequence``; a way is a
change of the default hyper-parameters. Ways that the results file holds are not run again.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

from benchmarks.real_model.sequence import Sequences, summary
from rome_fast.bench.setting import setting
from rome_fast.session import start

# Whether a Session edits, and what is changed.
WAYS: dict[str, tuple[bool, dict[str, Any]]] = {
    "edit_many": (False, {}),
    "edit_many, Adam, stop .3, rate .75": (
        False,
        {"solver": "adam", "v_stop_loss": 0.3, "v_lr": 0.75},
    ),
    "Session, weight, L-BFGS": (True, {}),
    "Session, weight, Adam": (True, {"solver": "adam"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--records", type=int, default=80)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    study = Sequences(args.work, args.records)
    base = study.hparams
    known = json.loads(args.out.read_text("utf-8"))["ways"] if args.out.exists() else {}
    for way in args.ways:
        if way in known:
            continue
        in_session, changes = WAYS[way]
        study.hparams = base.replace(**changes)
        start.SOLVER = study.hparams.solver
        study.ways = {way: study.session if in_session else lambda: study.plain(None)}
        known[way] = summary(study.run(way), study.before)
        report = {
            "setting": setting(),
            "records": len(study.records),
            "ways": known,
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(way, known[way], flush=True)


if __name__ == "__main__":
    main()
