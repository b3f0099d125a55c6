"""Where does the model itself end a sentence? Beginnings of sentences, whole and cut off.

    python -m benchmarks.real_model.can_end --out benchmarks/results/real-model-can-end.json

Sentences of held text, each cut once behind its last word, where it ends, and once behind a word
after which it goes on without a mark. The probability that SmolLM2 ends it there, over the ends
among its twenty likeliest tokens, is what ``end="auto"`` decides by (rome_fast/prompt/ends.py).
Reported for several thresholds: how often an end is found where one is, and where the text goes
on; many of the latter could end there as well.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rome_fast
from benchmarks.support.results import SHARED
from rome_fast.bench.setting import setting
from rome_fast.prompt.ends import masses
from rome_fast.prompt.greedy import end_tokens
from rome_fast.prompt.logits import logits_at

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXTS = SHARED / "wikitext" / "wikipedia-paragraphs.txt"
THRESHOLDS = (0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5)
BATCH = 32


def cuts(n_sentences: int) -> Iterator[tuple[str, str]]:
    """(where it is cut, the text before it), seeded."""
    drawn = random.Random(0)
    paragraphs = TEXTS.read_text(encoding="utf-8").split("\n")
    sentences = [s for text in paragraphs for s in re.split(r"(?<=[.!?])\s+", text)]
    sentences = [s for s in sentences if 8 <= len(s.split()) <= 30 and s.endswith(".")]
    drawn.shuffle(sentences)
    for sentence in sentences[:n_sentences]:
        yield "end", sentence[:-1]
        words = sentence.split()
        places = [k for k in range(3, len(words) - 1) if words[k][-1].isalnum()]
        if places:
            yield "goes on", " ".join(words[: drawn.choice(places) + 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, tok, _ = rome_fast.demo.load("smollm2")
    ends = set(end_tokens(model, tok))
    found: dict[str, list[tuple[float, float]]] = {"end": [], "goes on": []}
    asked = list(cuts(args.sentences))
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        rows = [tok(text)["input_ids"] for _, text in part]
        logits = logits_at(model, rows, [(i, len(row) - 1) for i, row in enumerate(rows)])
        for (kind, _), row, probs in zip(part, rows, logits.double().softmax(1), strict=True):
            whole, paused = masses(tok, row, probs, ends)
            found[kind].append((sum(p for p, _ in whole), sum(p for p, _ in paused)))
    report: dict[str, Any] = {"setting": setting(), "lines": []}
    for least in THRESHOLDS:
        line: dict[str, Any] = {"least": least}
        for kind, pairs in found.items():
            line[f"ends, {kind}"] = sum(whole >= least for whole, _ in pairs) / len(pairs)
            line[f"pauses, {kind}"] = sum(pause >= least for _, pause in pairs) / len(pairs)
        report["lines"].append(line)
        print(line, flush=True)
    report["n"] = {kind: len(pairs) for kind, pairs in found.items()}
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
