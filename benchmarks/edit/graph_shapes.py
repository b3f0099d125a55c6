"""How many CUDA graphs requests of many lengths need, as their shapes are rounded.

    python -m benchmarks.edit.graph_shapes --out benchmarks/results/graph-shapes.json

Nothing runs: the requests are CounterFact's, with targets of a token or two, and zsRE's, of up to a
dozen, encoded by GPT-2's tokenizer in the contexts that are written. A graph serves the requests of
one shape: rows, reads, positions before the lookup and columns from it on. "tokens" are the columns
of all rows, as a multiple of those that are no padding.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich import print as say
from transformers import AutoTokenizer

from benchmarks.real_model.records import read_counterfact, record_of
from benchmarks.support.results import SHARED
from rome_fast.prompt.contexts import WRITTEN_CONTEXTS
from rome_fast.prompt.encode import TokenizedEdit, encode
from rome_fast.types import EditRequest
from rome_fast.value.batch import EditBatch
from rome_fast.value.buckets import EXACT, Buckets
from rome_fast.value.prefix import PrefixSplit

WAYS = {
    "as they are": EXACT,
    "before and columns in fours": Buckets(before=4, columns=4),
    "before in sixteens, columns in eights": Buckets(before=16, columns=8),
    "buckets": Buckets.of("cuda"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--window", type=int, default=16)
    args = parser.parse_args()
    tok = AutoTokenizer.from_pretrained(SHARED / "tokenizers" / "gpt2")
    rows: list[dict[str, Any]] = []
    for data, requests in requests_of(args.records).items():
        edits = [encode(tok, request, WRITTEN_CONTEXTS) for request in requests]
        windows = [edits[i : i + args.window] for i in range(0, len(edits), args.window)]
        for name, buckets in WAYS.items():
            one = row_of([[edit] for edit in edits], buckets)
            rows.append({"data": data, "way": name, **one, "windows": row_of(windows, buckets)})
    say(rows)
    report = {"records": args.records, "window": args.window, "results": rows}
    args.out.write_text(json.dumps(report, indent=1) + "\n")


def requests_of(n: int) -> dict[str, list[EditRequest]]:
    """The first requests of each data set whose prompt names the subject."""
    counterfact = [record_of(raw).request for raw in read_counterfact()[:n]]
    raws = json.loads((SHARED / "zsre" / "zsre_mend_train-1k.json").read_text(encoding="utf-8"))
    named = [raw for raw in raws if raw["subject"] in raw["src"]][:n]
    zsre = [EditRequest(raw["src"], raw["subject"], raw["alt"]) for raw in named]
    return {"CounterFact": counterfact, "zsRE": zsre}


def row_of(batches: list[list[TokenizedEdit]], buckets: Buckets) -> dict[str, Any]:
    shapes, shares = zip(*(shape_of(batch, buckets) for batch in batches), strict=True)
    tokens = round(sum(shares) / len(shares), 2)
    return {"batches": len(batches), "graphs": len(set(shapes)), "tokens": tokens}


def shape_of(edits: list[TokenizedEdit], buckets: Buckets) -> tuple[tuple[int, ...], float]:
    """What a graph is captured for, and the columns that run beside those that have to."""
    batch = EditBatch.of(edits, buckets)
    split = PrefixSplit.at_lookup(batch)
    shape = batch.n_rows, len(batch.target_ids), split.before.shape[1], split.columns.shape[1]
    own = PrefixSplit.at_lookup(EditBatch.of(edits))
    return shape, split.columns.numel() / int(own.is_run.sum())


if __name__ == "__main__":
    main()
