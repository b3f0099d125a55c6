"""How many keys does one edit need, of which text, and with how much shrinkage?

    python -m benchmarks.real_model.keys_study --layer 3 --records 100 --work FOLDER \
        --out benchmarks/results/real-model-keys-layer3.json

v* of every record is found once (it does not depend on C). For every second moment the updates are
solved anew and tried, each alone on the unedited model; with --joint all are solved as one.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import random
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import rome_fast
from benchmarks.real_model.judging import Leak, RealModelJudge, means, paired_interval
from benchmarks.real_model.records import known_records, read_counterfact, record_of
from benchmarks.real_model.values import Found, find_values
from benchmarks.support.results import ROOT, SHARED
from rome_fast.bench.setting import setting
from rome_fast.errors import EditRejectedError
from rome_fast.evaluate.drift import Drift
from rome_fast.evaluate.records import EditRecord
from rome_fast.model.open_model import open_model
from rome_fast.model.spec import embedding_rows
from rome_fast.moment.collect.corpus import Corpus
from rome_fast.moment.collect.forward import KeyReader
from rome_fast.moment.collect.ordinary import ORDINARY_TEXT
from rome_fast.moment.collect.packing import pack_rows
from rome_fast.moment.second_moment import SecondMoment
from rome_fast.update.joint import solve_updates

PER_DIM = (1, 2, 4, 8, 16, 64)
SHRINKAGES = (0.1, 0.01, 0.5, "auto")
# Where the sampled text begins: the tokenizer's BOS, its end of text, or any token.
SAMPLED = {
    "bos, 64 tokens": ("bos", 64),
    "end of text, 64 tokens": ("end", 64),
    "any token, 64 tokens": ("any", 64),
    "any token, 16 tokens": ("any", 16),
}
DRIFT_EDITS, DRIFT_TEXTS, DRIFT_TOKENS = 4, 200, 12
LENGTH = 128


class Study:
    def __init__(self, args: argparse.Namespace) -> None:
        self.wanted = args.sources
        self.model, self.tok, _ = rome_fast.demo.load("smollm2")
        self.model.requires_grad_(False)
        self.records = self._records(args)[: args.records]
        hparams = rome_fast.RomeHparams.for_model(self.model)
        self.hparams = hparams.replace(
            layers=(args.layer,), context_template_length_params=((5, 3), (10, 2))
        )
        self.found: list[Found] = find_values(
            *(self.model, self.tok, self.records, self.hparams, args.work / "values"), window=4
        )
        with open_model(self.model) as spec:
            self.projection = spec.down_projection(args.layer)
        self.reader = KeyReader(self.model, [self.projection], separate=True, rows_at_once=8)
        lines = _lines(SHARED / "wikitext" / "wikitext-2-valid.txt")
        held = [ids for ids in self.tok(lines[:2000])["input_ids"] if len(ids) >= 40]
        keys = self._keys(iter(held[DRIFT_TEXTS : DRIFT_TEXTS + 100]), 8000)
        weight = self.projection.weight
        self.leak = Leak(keys, keys @ weight.T)
        texts = [self.tok.decode(ids[:DRIFT_TOKENS]) for ids in held[:DRIFT_TEXTS]]
        self.drift = Drift.baseline(self.model, self.tok, texts)
        self.judge = RealModelJudge(self.model, self.tok, self.projection, self.records)

    def _records(self, args: argparse.Namespace) -> list[EditRecord]:
        if args.first:
            return [record_of(raw) for raw in read_counterfact()[: args.records]]
        return known_records(self.model, self.tok, args.work / "ranks.json")

    def sources(self) -> Iterator[tuple[str, Iterator[list[int]], tuple[int, ...]]]:
        """(name, documents, sizes in keys a dimension)."""
        facts = [
            f"{text} {fact.target}."
            for fact in rome_fast.demo.load_facts()
            if fact.real
            for text in (fact.prompt.replace("{}", fact.subject), fact.paraphrase_prompts[0])
        ]
        random.Random(0).shuffle(facts)
        ordinary = _lines(ORDINARY_TEXT)
        yield "ordinary text of the package", self._ids(ordinary), (1, 4)
        yield "sentences of facts", self._ids(facts), (1, 4)
        mixed = [line for pair in zip(ordinary, facts[::4], strict=False) for line in pair]
        yield "both in turns", self._ids(mixed), (1, 4)
        topics = list(pydoc_data.topics.topics.values())
        random.Random(0).shuffle(topics)
        yield "pydoc_data.topics", self._ids(topics), (1, 4)
        pages = sorted((ROOT / "docs").glob("*.md"))
        yield "pages of this project", self._ids([p.read_text() for p in pages]), (1, 4)
        for name, (start, length) in SAMPLED.items():
            yield f"sampled, {name}", self._sampled(start, length), (1, 4)
        shuffled = _lines(SHARED / "wikitext" / "wikipedia-paragraphs.txt")
        random.Random(0).shuffle(shuffled)
        yield "WikiText", self._ids(shuffled), PER_DIM

    def moments(self) -> Iterator[tuple[str, float, float | str, SecondMoment | None]]:
        """(source, keys a dimension, shrinkage, C)."""
        yield "none (C = I)", 0, 0, None
        d_key = self.projection.d_key
        for source, documents, sizes in self.sources():
            if self.wanted and source not in self.wanted:
                continue
            keys = self._keys(documents, max(sizes) * d_key)
            for size in sizes:
                if len(keys) < size * d_key:
                    continue
                # The source is compared at one shrinkage.
                for shrinkage in SHRINKAGES if source == "WikiText" else SHRINKAGES[:1]:
                    moment = SecondMoment(d_key, dtype=torch.float32, damping=shrinkage)
                    moment.add(keys[: size * d_key])
                    yield source, size, shrinkage, moment

    def cell(self, shrinkage: float | str, moment: SecondMoment | None) -> dict[str, Any]:
        """All records with one second moment."""
        updates = []
        for found in self.found:
            try:
                constraint = found.constraint(self.hparams.variant)
                updates += solve_updates(self.projection, [constraint], moment)
            except EditRejectedError:
                updates.append(None)
        rows = self.judge(updates)
        norm = float(self.projection.weight.norm())
        for row, update in zip(rows, updates, strict=True):
            if update is not None:
                row |= {"norm": update.norm / norm, "leak": self.leak(update)}
        drifts = []
        if shrinkage in (0, 0.1):
            for update in updates[:DRIFT_EDITS]:
                self.projection.weight.add_(update.dense())
                drifts.append(self.drift.measure(self.model)["kl"])
                self.projection.weight.sub_(update.dense())
        return {"rows": rows, "drift": drifts}

    @torch.no_grad()
    def joint(self, moment: SecondMoment | None) -> dict[str, Any]:
        """All records solved as one and written together."""
        constraints = [found.constraint(self.hparams.variant) for found in self.found]
        updates = solve_updates(self.projection, constraints, moment)
        total = sum(update.dense() for update in updates)
        before = self.projection.weight.clone()
        self.projection.weight.add_(total)
        rows, drift = self.judge.now(), self.drift.measure(self.model)
        self.projection.weight.copy_(before)
        norm = float(total.norm() / before.norm())
        return {"rows": [{**row, "norm": norm, "refused": False} for row in rows], **drift}

    @torch.no_grad()
    def _keys(self, documents: Iterator[list[int]], count: int) -> torch.Tensor:
        """The first keys of documents, [count, d_key] or fewer."""
        kept: list[torch.Tensor] = []
        rows = pack_rows(documents, LENGTH, count)
        while batch := list(islice(rows, 8)):
            self.reader.read(batch, lambda _, keys, __: kept.append(keys.clone()))
        return torch.cat(kept)

    def _ids(self, texts: list[str]) -> Iterator[list[int]]:
        return iter(Corpus(texts, self.tok, embedding_rows(self.model)))

    def _sampled(self, start: str, length: int) -> Iterator[list[int]]:
        torch.manual_seed(0)
        firsts = {"bos": self.tok.bos_token_id, "end": 0, "any": None}
        while True:
            first = firsts[start]
            if first is None:
                low, high = len(self.tok.all_special_ids), len(self.tok)
                given = torch.randint(low, high, (64, 1))
            else:
                given = torch.full((64, 1), first)
            drawn = self.model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=length - (first is None),
                suppress_tokens=self.tok.all_special_ids,
                do_sample=True,
                top_k=0,
            )
            # What a text begins with is no text.
            yield from drawn[:, first is not None :].tolist()


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--work", type=Path, required=True, help="where found values are kept")
    parser.add_argument(
        "--first", action="store_true", help="first records of the file, known to the model or not"
    )
    parser.add_argument("--joint", action="store_true", help="all records solved as one")
    parser.add_argument("--sources", nargs="*", help="of the text, by name; default: all")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    study = Study(args)
    unedited, base, table = study.judge.unedited(), None, []
    print("unedited", means(unedited), flush=True)
    for source, size, shrinkage, moment in study.moments():
        began = time.perf_counter()
        if args.joint:
            if shrinkage not in (0, "auto"):
                continue
            made = study.joint(moment)
            rows = made.pop("rows")
            figures = {**means(rows), **made}
        else:
            made = study.cell(shrinkage, moment)
            rows, figures = made["rows"], means([r for r in made["rows"] if not r["refused"]])
            figures["drift"] = sum(made["drift"]) / len(made["drift"]) if made["drift"] else None
        base = base or rows
        cell = {"source": source, "keys_per_dim": size, "shrinkage": shrinkage, **figures}
        cell["ridge"] = None if moment is None else moment.ridge()
        for name in ("NS", "PS", "unchanged"):
            cell[f"{name}_beyond_identity"] = paired_interval(rows, base, name)
        table.append(cell)
        said = {k: round(v, 3) for k, v in figures.items() if v is not None}
        print(source, size, shrinkage, said, f"{time.perf_counter() - began:.0f} s", flush=True)
        report = {"setting": setting(), "layer": args.layer, "records": len(study.records)}
        report |= {"hparams": vars(study.hparams), "unedited": means(unedited), "cells": table}
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
