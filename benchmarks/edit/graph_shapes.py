"""How many CUDA graphs requests of many lengths need, as their shapes are rounded.

    python -m benchmarks.edit.graph_shapes --out benchmarks/results/graph-shapes.json

Nothing runs: the requests are CounterFact's, encoded by GPT-2's tokenizer in the contexts that are
written. A graph serves the requests of one shape: rows, reads, positions before the lookup and
columns from it on. "tokens" are the columns of all rows, as a share of those that are no padding.
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
from rome_fast.value.batch import EditBatch
from rome_fast.value.buckets import EXACT, Buckets
from rome_fast.value.prefix import PrefixSplit

WAYS = {
    "as they are": EXACT,
    "before and columns in fours": Buckets(before=4, columns=4),
    "before in sixteens, columns in eights": Buckets(before=16, columns=8),
    "buckets": Buckets.of("cuda"),
}


def shape_of(edits: list[TokenizedEdit], buckets: Buckets) -> tuple[tuple[int, ...], float]:
    """What a graph is captured for, and the columns that run beside those that have to."""
    batch = EditBatch.of(edits, buckets)
    last = batch.lookup_idx.scatter_reduce(0, batch.read_rows, batch.read_positions, "amax")
    split = PrefixSplit.between(batch.lookup_idx, last, batch.input_ids.shape[1], buckets)
    shape = batch.n_rows, len(batch.target_ids), split.before.shape[1], split.columns.shape[1]
    own = EditBatch.of(edits)
    ends = own.lookup_idx.scatter_reduce(0, own.read_rows, own.read_positions, "amax")
    return shape, split.columns.numel() / int((ends - own.lookup_idx + 1).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--window", type=int, default=16)
    args = parser.parse_args()
    tok = AutoTokenizer.from_pretrained(SHARED / "tokenizers" / "gpt2")
    requests = [record_of(raw).request for raw in read_counterfact()[: args.records]]
    edits = [encode(tok, request, WRITTEN_CONTEXTS) for request in requests]
    windows = [edits[i : i + args.window] for i in range(0, len(edits), args.window)]
    rows: list[dict[str, Any]] = []
    for name, buckets in WAYS.items():
        for what, batches in ("one by one", [[e] for e in edits]), ("in windows", windows):
            shapes, shares = zip(*(shape_of(batch, buckets) for batch in batches), strict=True)
            tokens = round(sum(shares) / len(shares), 2)
            rows.append(
                {
                    "way": name,
                    "edits": what,
                    "batches": len(batches),
                    "graphs": len(set(shapes)),
                    "tokens": tokens,
                }
            )
    say(rows)
    facts = {"records": len(edits), "window": args.window, "results": rows}
    args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
