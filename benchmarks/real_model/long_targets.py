"""How much one value vector can hold: targets of 4 to 60 tokens, edited alone and said greedily.

    python -m benchmarks.real_model.long_targets --work FOLDER \
        --out benchmarks/results/real-model-long-targets.json

Targets of five kinds (sentences, dates, addresses, lines of code, JSON), cut or joined to the length
that is asked for, behind "{subject}: " prompts about subjects of CounterFact. An edit holds its
target when greedy decoding says all of it behind the bare prompt; "tokens" is the share of its tokens
that are the likeliest behind the right ones before them. One context, the bare prompt. "chunks"
writes the target as several edits, each at the last token of what is said before it, solved jointly
(AnyEdit, arXiv 2502.05628).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rome_fast
from benchmarks.real_model.records import record_of, read_counterfact
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
# Whole passages of each kind; a target is the beginning of one, of as many tokens as asked for.
PASSAGES = {
    "sentence": (
        "The committee met in the old library on Thursday evening and decided, after a long debate "
        "about money, that the bridge across the river should be rebuilt in stone before the next "
        "winter, although the engineers had warned that the work would take at least two years and "
        "cost far more than anyone in the town had expected",
        "Her grandmother kept bees behind the mill, sold the honey at the market in the spring, and "
        "taught all the children of the village how to read the weather from the flight of the "
        "swallows, which she claimed had never once been wrong in the sixty years that she had "
        "watched them from her kitchen window",
    ),
    "date and place": (
        "14 March 1887, in a farmhouse near Lake Balaton, and was baptised on 2 April 1887 in the "
        "parish church of Saint Michael, where the register was signed on 3 April 1887 by two "
        "witnesses from Keszthely; the family moved to 27 Attila Street in 1891 and to Vienna on 9 "
        "September 1894",
        "29 February 1904 at 6:45 in the morning, at number 118 Harbour Road, Dunedin; registered on "
        "7 March 1904 under number 20417, corrected on 12 May 1904, and copied on 30 June 1931 for "
        "the passport office in Wellington, which issued passport 558120 on 4 July 1931",
    ),
    "address": (
        "Flat 3, 42 Upper Quay Lane, Whitby YO21 9QX, North Yorkshire, England; deliveries through "
        "the yard at 7 Tin Ghaut between 8 and 11, telephone 01947 555 0182, ask for Mrs Pell; in "
        "August letters go to Villa Ombra, Via dei Pini 16, 55042 Forte dei Marmi, Italy",
        "1600 Larkspur Boulevard, Suite 240, Fort Collins, CO 80525, United States; billing to PO "
        "Box 7731, Cheyenne, WY 82003; warehouse at 15 Rail Yard Road, Laramie, WY 82070, gate code "
        "4419, open on weekdays from 7:30 to 15:45 and on the first Saturday of each month",
    ),
    "code": (
        "def merge(a, b): return sorted(set(a) | set(b), key=lambda x: (len(x), x)) if a and b else "
        "list(a or b)[:10]; rows = [merge(x, y) for x, y in zip(left, right, strict=True)]; "
        "assert all(len(r) <= 10 for r in rows), max(map(len, rows)); print(rows[-1])",
        "for (int i = 0; i < n; ++i) { if (seen[i] && !(flags & MASK)) { total += weights[i] * 0.25f; "
        "continue; } queue.push_back({i, depth + 1, &nodes[i % 16]}); } return total > 1e-6f ? "
        "std::sqrt(total / n) : std::numeric_limits<float>::infinity();",
    ),
    "json": (
        '{"id": 4471, "name": "Orla Fenn", "tags": ["red", "new"], "size": {"w": 12.5, "h": 40}, '
        '"active": true, "parent": null, "history": [{"at": "2021-05-03", "by": "kd"}, {"at": '
        '"2022-11-19", "by": "rt"}], "score": 0.875, "next": 4472, "notes": "see page 9"}',
        '{"route": [[51.5, -0.12], [48.86, 2.35], [45.46, 9.19]], "mode": "rail", "stops": 7, '
        '"price": {"EUR": 189.9, "class": 2}, "valid": ["2024-06-01", "2024-06-30"], "seat": "14C", '
        '"changes": false, "ticket": "QX7-0093-LM", "agent": 12, "bags": 2, "meal": "none"}',
    ),
}


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
        return {
            "length": length, "layer": layer, "chunk": chunk, **changes, "n": len(rows),
            **figures, "exact_of": exact, "seconds": seconds,
        }  # fmt: skip

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--layers", nargs="+", type=int, default=(4, 9))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    study = LongTargets()
    report: Row = {"setting": setting(), "lines": []}
    asked: list[Row] = [
        {"length": n, "layer": layer} for n in args.lengths for layer in args.layers
    ]
    asked += [{"length": n, "layer": 4, "v_num_grad_steps": 100} for n in args.lengths[1:]]
    asked += [
        {"length": n, "layer": 4, "v_num_grad_steps": 100, "clamp_norm_factor": 16.0}
        for n in args.lengths[2::2]
    ]
    asked += [{"length": n, "layer": 4, "chunk": CHUNK} for n in args.lengths if n > CHUNK]
    for options in asked:
        report["lines"].append(study.line(**options))
        shown = {k: v for k, v in report["lines"][-1].items() if k != "exact_of"}
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in shown.items()}, flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
