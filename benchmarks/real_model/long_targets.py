"""How much one value vector can hold: targets of 4 to 60 tokens, edited alone and said greedily.

    python -m benchmarks.real_model.long_targets \
        --out benchmarks/results/real-model-long-targets.json

Targets of five kinds (sentences, dates and places, addresses, code, JSON), two of each, cut
to the length that is asked for, behind "The note about {} says:". An edit holds its target when
greedy decoding says all of it; "tokens" is the share of its tokens that are the likeliest behind
the right ones before them. One context, the bare prompt. A "chunk" writes the target as several
edits, each at the last word of what is said before it, solved jointly (AnyEdit, arXiv 2502.05628).
A line that the file has already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import rome_fast
from benchmarks.real_model.records import read_counterfact, record_of
from rome_fast.bench.setting import setting
from rome_fast.evaluate.records import Question
from rome_fast.evaluate.scoring import score
from rome_fast.hparams import RomeHparams
from rome_fast.model.open_model import open_model
from rome_fast.moment.collect.ordinary import ordinary_second_moment
from rome_fast.prompt.encode import encode
from rome_fast.prompt.request import SLOT
from rome_fast.timings import Timings
from rome_fast.types import EditRequest
from rome_fast.update.joint import solve_updates
from rome_fast.update.solve import build_constraint
from rome_fast.value.window import KeyValueSearch

Row = dict[str, Any]
LENGTHS = (4, 8, 16, 32, 60)
CHUNK = 8
# What might hold more: a longer search, and a larger offset, by the lengths that are tried.
FURTHER: list[tuple[Row, tuple[int, ...]]] = [
    ({"v_num_grad_steps": 100}, (8, 16, 32, 60)),
    ({"v_num_grad_steps": 100, "clamp_norm_factor": 12.0}, (8, 16)),
]
# By their kind. A target is the beginning of one, of as many tokens as asked for.
PASSAGES: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("passages.json").read_text(encoding="utf-8")
)


class LongTargets:
    """Requests with targets of a length, and how much of them an edit holds."""

    def __init__(self) -> None:
        self.model, self.tok, _ = rome_fast.demo.load("smollm2")
        self.model.requires_grad_(False)
        self.hparams = RomeHparams.for_model(self.model)
        self.moments: dict[int, Any] = {}
        seen = dict.fromkeys(record_of(raw).request.subject for raw in read_counterfact())
        self.subjects = list(seen)

    def requests(self, length: int) -> list[EditRequest]:
        """One for each passage."""
        passages = [text for texts in PASSAGES.values() for text in texts]
        requests = []
        for subject, passage in zip(self.subjects, passages, strict=False):
            ids = self.tok(f" {passage}")["input_ids"][:length]
            target = self.tok.decode(ids).strip()
            requests.append(EditRequest(f"The note about {SLOT} says:", subject, target))
        return requests

    def line(self, length: int, layer: int, chunk: int = 0, **changes: Any) -> Row:
        """Edits of one length in one layer; ``chunk``: tokens of a part, 0 for the whole."""
        hparams = self.hparams.replace(layers=(layer,), **changes)
        rows = []
        began = time.perf_counter()
        for request in self.requests(length):
            rows.append(self._edited(request, hparams, chunk))
        seconds = (time.perf_counter() - began) / len(rows)
        kinds = [kind for kind, texts in PASSAGES.items() for _ in texts]
        exact = {
            kind: statistics.fmean(
                r["exact"] for r, k in zip(rows, kinds, strict=True) if k == kind
            )
            for kind in PASSAGES
        }
        figures = {name: statistics.fmean(r[name] for r in rows) for name in rows[0]}
        options = {"length": length, "layer": layer, "chunk": chunk, **changes}
        return {**options, "n": len(rows), **figures, "exact_of": exact, "seconds": seconds}

    def _edited(self, request: EditRequest, hparams: RomeHparams, chunk: int) -> Row:
        with open_model(self.model) as spec:
            projection = spec.down_projection(hparams.layer)
            if hparams.layer not in self.moments:
                self.moments[hparams.layer] = ordinary_second_moment(spec, self.tok, projection)
            search = KeyValueSearch(spec, self.tok, projection, hparams)
            parts = self._parts(request, chunk)
            edits = [encode(self.tok, part, [SLOT], hparams.fact_token) for part in parts]
            found = search.find(spec, edits, Timings())
            constraints = [
                build_constraint(hparams.variant, f.keys, f.value.value_delta) for f in found
            ]
            updates = solve_updates(projection, constraints, self.moments[hparams.layer])
        weight = projection.weight
        before = weight.detach().clone()
        weight.data += sum(update.dense() for update in updates).to(weight)
        [said] = score(self.model, self.tok, [Question(request.text, request.target)])
        weight.data.copy_(before)
        return {
            "exact": float(said.exact),
            "tokens": said.accuracy,
            "loss": found[0].value.losses[-1],
            "steps": len(found[0].value.losses),
        }

    def _parts(self, request: EditRequest, chunk: int) -> list[EditRequest]:
        """The whole, or its chunks, each behind the text before it, at that text's last word."""
        if not chunk:
            return [request]
        ids = self.tok(f" {request.target}")["input_ids"]
        parts = [EditRequest(request.prompt, request.subject, self.tok.decode(ids[:chunk]).strip())]
        for start in range(chunk, len(ids), chunk):
            text = f"{request.text}{self.tok.decode(ids[:start])}"
            last = self.tok.decode(ids[start - 1 : start]).strip() or text.split()[-1]
            at = text.rindex(last)
            target = self.tok.decode(ids[start : start + chunk])
            span = (at, at + len(last))
            parts.append(EditRequest(text, target=target, span=span, space=target.startswith(" ")))
        return parts


def _measured(options: Row, lines: list[Row]) -> bool:
    changes = {name for further, _ in FURTHER for name in further} | set(options)
    return any({k: v for k, v in line.items() if k in changes} == options for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--layers", nargs="+", type=int, default=(4, 9))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    study = LongTargets()
    report: Row = {"setting": setting(), "lines": []}
    if args.out.exists():
        report = json.loads(args.out.read_text(encoding="utf-8"))
    asked: list[Row] = [
        {"length": n, "layer": layer, "chunk": 0} for n in args.lengths for layer in args.layers
    ]
    asked += [{"length": n, "layer": 4, "chunk": CHUNK} for n in args.lengths if n > CHUNK]
    asked += [
        {"length": n, "layer": 4, "chunk": 0, **changes}
        for n in args.lengths
        for changes, lengths in FURTHER
        if n in lengths
    ]
    asked = [options for options in asked if not _measured(options, report["lines"])]
    for options in asked:
        report["lines"].append(study.line(**options))
        shown = {k: v for k, v in report["lines"][-1].items() if k != "exact_of"}
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in shown.items()}, flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
