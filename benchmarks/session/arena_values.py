"""v* of the arena's first facts, kept with the results: what is compared next needs no search.

    python -m benchmarks.session.arena_values --work FOLDER --n 300

Only the deltas are kept; keys take a forward. They are used where model, records and
hyper-parameters are the same.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.support.results import RESULTS

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.evaluate.records import EditRecord
    from rome_fast.hparams import RomeHparams

# Fields that came after the values were kept, as they were then.
_LATER = {"contexts": "text", "end": "none", "max_answer_tokens": 0, "solver": "adam"}
KEPT = RESULTS / "arena-values.safetensors"


def kept_deltas(records: Sequence[EditRecord], hparams: RomeHparams) -> Tensor:
    """Those of the first records, [n, d_value]; n is 0 where others were kept."""
    if not KEPT.exists():
        return torch.empty(0, 0)
    with safe_open(KEPT, "pt") as file:
        deltas, cases = file.get_tensor("value_delta"), file.get_tensor("case_id").tolist()
        told = {**_LATER, **json.loads(file.metadata()["hparams"])}
        same = told == json.loads(_as_json(hparams))
    same &= [record.case_id for record in records[: len(cases)]] == cases
    return deltas if same else deltas[:0]


def _as_json(hparams: RomeHparams) -> str:
    return json.dumps(asdict(hparams))


def main() -> None:
    from benchmarks.session.arena_facts import ArenaFacts

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--n", type=int, default=300)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    facts = ArenaFacts(args.work, None)
    tensors = {
        "value_delta": torch.stack([found.value_delta for found in facts.search(args.n)]),
        "case_id": torch.tensor([record.case_id for record in facts.records[: args.n]]),
    }
    save_file(tensors, KEPT, metadata={"hparams": _as_json(facts.hparams)})


if __name__ == "__main__":
    main()
