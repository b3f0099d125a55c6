"""Which form when: edits of the real model in all three forms, judged at the same facts.

    python -m benchmarks.session.arena --work FOLDER --sizes 80 300 --searched 300 \
        --out benchmarks/results/arena.json

CounterFact facts, one a subject, those that the model knows first. What is found for each is kept
in the folder, and every finished line too, so that a run that is cut off goes on where it was. The
first ``--judged`` facts are asked about after any number of edits, and of all that were searched
whether they hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.real_model.judging import RealModelJudge, interval, means
from benchmarks.session.arena_asks import ArenaAsks
from benchmarks.session.arena_facts import ArenaFacts
from benchmarks.session.arena_stream import Step, standing, stream
from benchmarks.support.results import SHARED
from rome_fast.bench.setting import setting
from rome_fast.beside.entry import entry_of
from rome_fast.beside.module import Beside
from rome_fast.errors import EditRejectedError
from rome_fast.evaluate.drift import Drift
from rome_fast.evaluate.records import EditRecord, Question
from rome_fast.evaluate.scoring import score
from rome_fast.hparams import FORMS
from rome_fast.model.activations import read_activations
from rome_fast.session.retention import RetainedMoment
from rome_fast.types import RankOneUpdate
from rome_fast.update.joint import solve_updates
from rome_fast.update.solve import build_constraint
from rome_fast.update.undo import WeightHistory
from rome_fast.value.key import Keys

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

N_TEXTS, LENGTH = 1000, 16
RETAIN = 0.01  # a Session's own
HEARD = 0.2  # of an edit
Row = dict[str, Any]


def held_texts(tok: PreTrainedTokenizerBase) -> list[list[int]]:
    """Beginnings of paragraphs that no statistic has read, as ids."""
    lines = (SHARED / "wikitext" / "wikitext-2-valid.txt").read_text("utf-8").splitlines()
    long = [ids for ids in tok(lines)["input_ids"] if len(ids) >= LENGTH]
    return [ids[:LENGTH] for ids in long[:N_TEXTS]]


class Arena:
    """The facts of one layer, what is asked, and the ways to put them into the model."""

    def __init__(
        self, work: Path, layer: int | None, judged: int, searched: int, n_texts: int
    ) -> None:
        self.facts = ArenaFacts(work, layer)
        self.searched = searched
        facts = self.facts
        self.judge = RealModelJudge(
            facts.model, facts.tok, facts.projection, facts.records[:judged]
        )
        self.asks = ArenaAsks(facts.model, facts.tok, facts.records[:judged])
        self.texts = held_texts(facts.tok)[:n_texts]
        self.drift = Drift.baseline(facts.model, facts.tok, list(map(facts.tok.decode, self.texts)))
        self.before = self.drift.measure(facts.model)["perplexity"]

    def run(self, form: str, n: int, order: int = 0, again: int = 0) -> Row:
        """One line: the first ``n`` facts edited, as in ``stream``, and what the model says."""
        began = time.perf_counter()
        steps = stream(n, min(n, self.searched), order, again)
        with self._edited(form, n, steps) as heard:
            row = {"form": form, "n": n, "seconds": time.perf_counter() - began}
            row |= {"heard": heard, **self.asks.now(), **self.judged(n)}
        return row

    def judged(self, n: int) -> Row:
        """What the model says now, with the first ``n`` facts edited."""
        drift = self.drift.measure(self.facts.model)
        row = {"perplexity": drift["perplexity"] / self.before, "kl": drift["kl"]}
        return {**row, "rows": self.judge.now(), "holds": self._hold(min(n, self.searched))}

    def alone(self, form: str) -> Row:
        """Each judged fact edited alone: what a sequence is compared with."""
        n = len(self.judge.records)
        line = {"form": f"{form}, each alone", "n": 1}
        if form != "weight":
            beside = Beside(self.facts.units, self.facts.entry)
            rows = []
            for i, offset in enumerate(self.facts.offsets(form, stream(n, n))):
                beside.set([offset])
                rows.append(self.judge.now_of(i))
            beside.set([])
            return {**line, "rows": rows}
        updates: list[RankOneUpdate | None] = []
        for found in self.facts.search(n):
            try:
                constraint = found.constraint(self.facts.hparams.variant)
                updates += solve_updates(self.facts.projection, [constraint], self.facts.moment)
            except EditRejectedError:
                updates.append(None)
        return {**line, "rows": self.judge(updates)}

    def _hold(self, n: int) -> float:
        """Share of the first ``n`` facts whose target is the greedy answer."""
        questions = [Question.of(record.request) for record in self.facts.records[:n]]
        said = score(self.facts.model, self.facts.tok, questions)
        return statistics.fmean(s.exact for s in said) if said else 0.0

    @contextmanager
    def _edited(self, form: str, n: int, steps: list[Step]) -> Iterator[float]:
        """While open, the first ``n`` facts are edited; yields the share of text that hears it."""
        if form == "weight":
            with self.as_a_session(n, steps):
                yield 0.0
            return
        beside = Beside(self.facts.units, self.facts.entry)
        beside.set(self.facts.offsets(form, standing(steps)))
        try:
            yield self._heard(beside, form, n)
        finally:
            beside.set([])

    @contextmanager
    def as_a_session(self, n: int, steps: list[Step]) -> Iterator[None]:
        """As a Session writes them: each solved in the metric that retains those before it.

        Of a fact that is edited again, the earlier edit is taken out first.
        """
        facts = self.facts
        history = WeightHistory(facts.projection, "native")
        retained = RetainedMoment(facts.moment, RETAIN, facts.projection, "native")
        values, reads = facts.search(min(n, self.searched)), facts.read(n)
        keys: dict[int, torch.Tensor] = {}
        updates: dict[int, RankOneUpdate] = {}
        try:
            for fact, value in steps:
                if fact in updates:
                    del updates[fact], keys[fact]
                    history.replay(list(updates.values()))
                    retained.retain(keys)
                found = values[value]
                own = found.keys if fact == value else _borrowed(found.keys, reads[fact].keys)
                constraint = build_constraint(facts.hparams.variant, own, found.value_delta)
                with suppress(EditRejectedError):
                    [updates[fact]] = solve_updates(facts.projection, [constraint], retained)
                    history.add(updates[fact])
                    keys[fact] = constraint.denominator_keys
                    retained.retain(keys)
            yield
        finally:
            history.rewind(0)

    @torch.no_grad()
    def _heard(self, beside: Beside, form: str, n: int) -> float:
        """Share of tokens of held texts that name no edited subject at which an edit is heard."""
        names = [record.request.subject.casefold() for record in self.facts.records[:n]]
        texts = self.facts.tok.batch_decode(self.texts)
        other = [not any(name in text.casefold() for name in names) for text in texts]
        entry, shares = entry_of(self.facts.units), []
        for start in range(0, len(self.texts), 16):
            ids = torch.tensor(self.texts[start : start + 16])
            h, _ = read_activations(self.facts.model, entry, ids, torch.ones_like(ids))
            if form == "gate":
                heard = beside.rows("gate").nearest(h)[1]
            else:
                activity = beside.rows("neuron").activity(beside.units.activation, h)
                heard = (activity > HEARD).any(-1)
            shares.append(heard[other[start : start + 16]].double().flatten())
        return float(torch.cat(shares).mean())


def _borrowed(keys: Keys, own: torch.Tensor) -> Keys:
    """Another subject's keys, with the values that were searched for this one."""
    return Keys(own[1].to(keys.key), own[0].to(keys.key), keys.mean_value, keys.value_init)


def summary(row: Row, records: Sequence[EditRecord], edited: Sequence[EditRecord]) -> Row:
    """The line's means, with neighbours that name an edited subject apart."""
    found = {k: v for k, v in row.items() if k != "rows"} | means(row["rows"])
    names = [record.request.subject.casefold() for record in edited]
    for group in ("NS", "unchanged"):
        others = []
        for record, line in zip(records, row["rows"], strict=True):
            for question, value in zip(record.neighborhood, line[group], strict=True):
                if not any(name in question.prompt.casefold() for name in names):
                    others.append(value)
        found[f"{group}_untouched"] = statistics.fmean(others)
    shown = ("ES", "PS", "PS_greedy", "NS", "unchanged")
    return {**found, "intervals": {name: interval(row["rows"], name) for name in shown}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layer", type=int)
    parser.add_argument("--sizes", type=int, nargs="+", default=[80, 300])
    parser.add_argument("--searched", type=int, default=300)
    parser.add_argument("--judged", type=int, default=80)
    parser.add_argument("--texts", type=int, default=N_TEXTS)
    parser.add_argument("--forms", nargs="+", default=FORMS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    arena = Arena(args.work, args.layer, args.judged, args.searched, args.texts)
    layer = arena.facts.hparams.layer
    path = args.work / f"arena-layer-{layer}-{args.searched}-{args.judged}.jsonl"
    rows = [json.loads(line) for line in path.open()] if path.exists() else []
    done = {(row["form"], row["n"]) for row in rows}
    todo = [("unedited", 0), *((f"{form}, each alone", 1) for form in args.forms)]
    todo += [(form, n) for n in args.sizes for form in args.forms]
    for form, n in todo:
        if (form, n) in done:
            continue
        if form == "unedited":
            row: Row = {"form": form, "n": 0, "rows": arena.judge.unedited(), **arena.asks.now()}
        else:
            row = arena.alone(form.partition(",")[0]) if n == 1 else arena.run(form, n)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
        shown = summary(row, arena.judge.records, arena.facts.records[: row["n"]])
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in shown.items()}, flush=True)
    about = {"layer": layer, "searched": args.searched, "asked": arena.asks.numbers}
    report: Row = {"setting": setting(), **about}
    report["lines"] = [summary(r, arena.judge.records, arena.facts.records[: r["n"]]) for r in rows]
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
