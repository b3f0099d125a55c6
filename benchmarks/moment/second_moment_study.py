"""How many keys does an edit need? Success, locality and norms against the size of C.

    python -m benchmarks.moment.second_moment_study --texts FILE... --edits 100 \
        --out benchmarks/results/second-moment-study.json
    python -m benchmarks.moment.second_moment_study \
        --plot benchmarks/results/second-moment-study.json docs/second-moment-study.svg

C is made of the first 0.5 d to 1000 d keys of real text, and of text sampled from the model, each
with no ridge and with the automatic one, and is the identity. Each fact of the embedded model is
edited alone; its v*, which does not depend on C, is optimised once and shared.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import rome_fast
from benchmarks.edit.edit_quality import Bench, Started
from rome_fast.bench.setting import setting
from rome_fast.errors import SecondMomentError
from rome_fast.model.spec import embedding_rows, max_positions
from rome_fast.moment.collect.convergence import HELD_OUT_ROWS, Convergence, held_out_of
from rome_fast.moment.collect.corpus import Corpus
from rome_fast.moment.collect.forward import KeyReader
from rome_fast.moment.collect.packing import pack_rows
from rome_fast.moment.collect.sampled import sampled_documents
from rome_fast.moment.second_moment import SecondMoment
from rome_fast.prompt.encode import encode
from rome_fast.update.solve import apply_update_, build_constraint
from rome_fast.update.undo import WeightHistory

KEYS_PER_DIM = (0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
DAMPINGS = (0.0, "auto")


class Study:
    """The embedded model, held text, and one second moment for every cell of the table."""

    def __init__(self, texts: list[Path]) -> None:
        self.bench = Bench({}, "identity")
        tok = self.bench.tok
        self.length = max_positions(self.bench.model)
        real = [line for path in texts for line in path.read_text().splitlines() if line.strip()]
        random.Random(0).shuffle(real)
        rows = pack_rows(Corpus(real[:40], tok, len(tok)), self.length, 8 * self.length)
        self.held = torch.tensor([row.ids for row in rows])
        self.held_before = self.log_probs()
        self.cells: dict[tuple[str, float, float | str], SecondMoment | None] = {
            ("identity", 0.0, 0.0): None
        }
        self.changes: dict[tuple[str, float, float | str], float] = {}
        for source, documents in (("real", real[40:]), ("sampled", self.sampled())):
            self.add_cells(source, Corpus(documents, tok, embedding_rows(self.bench.model)))

    def sampled(self) -> Iterator[list[int]]:
        return sampled_documents(self.bench.model, self.bench.tok)

    def add_cells(self, source: str, corpus: Corpus) -> None:
        """Second moments of the first keys of a corpus, at every size that it reaches."""
        d = self.bench.projection.d_key
        sizes = [int(k * d) for k in KEYS_PER_DIM]
        rows = pack_rows(corpus, self.length, None)
        moment, convergence = SecondMoment(d), Convergence.of(d)
        reader = KeyReader(
            self.bench.model, [self.bench.projection], separate=True, rows_at_once=32
        )
        for row in itertools.islice(rows, HELD_OUT_ROWS):
            positions = held_out_of(row.index, list(range(len(row))))
            reader.read(
                [row], lambda _, k, r, at=positions: convergence.hold_out(r[0].index, k, at)
            )
        checks = {damping: copy.deepcopy(convergence) for damping in DAMPINGS}
        for row in rows:
            reader.read([row], lambda _, keys, __: moment.add(keys[: sizes[0] - moment.count]))
            if moment.count == sizes[0]:
                self.add_cell(source, moment, checks)
                print(source, sizes.pop(0), "keys", flush=True)
            if not sizes:
                return
        self.add_cell(source, moment, checks)

    def add_cell(
        self, source: str, moment: SecondMoment, checks: dict[float | str, Convergence]
    ) -> None:
        for damping in DAMPINGS:
            made = copy.deepcopy(moment)
            made.damping = damping
            cell = (source, moment.count / moment.d_key, damping)
            try:
                checks[damping].check(made)
            except SecondMomentError:
                continue
            self.cells[cell] = made
            self.changes[cell] = checks[damping].checks[-1].get("change")

    @torch.no_grad()
    def log_probs(self) -> torch.Tensor:
        return self.bench.model(input_ids=self.held).logits.log_softmax(-1)

    def drift(self) -> float:
        """KL(before || after) on held text, nats a token."""
        before = self.held_before
        return float((before.exp() * (before - self.log_probs())).sum(-1).mean())

    def edit(self, fact: Any) -> list[dict[str, Any]]:
        """One fact with every second moment; the weights are as before on return."""
        bench = self.bench
        request = rome_fast.EditRequest(fact.prompt, fact.subject, fact.target_new)
        tokens = encode(bench.tok, request, bench.contexts, bench.hparams.fact_token)
        started = Started.on(bench, tokens)
        value, _ = bench.optimize(started, bench.hparams.variant)
        near = [(p.prompt, p.target) for p in fact.neighborhood_prompts]
        near_before = [bench.says(*pair) for pair in near]
        history = WeightHistory(bench.projection, "torch")
        norm = float(bench.projection.weight.norm())
        rows = []
        for (source, keys_per_dim, damping), moment in self.cells.items():
            constraint = build_constraint(bench.hparams.variant, started.keys, value.value_delta)
            update = apply_update_(history, constraint, moment)
            near_after = [bench.says(*pair) for pair in near]
            target = fact.target_new
            rows.append(
                {
                    "case_id": fact.case_id,
                    "source": source,
                    "keys_per_dim": round(keys_per_dim, 1),
                    "damping": damping,
                    "success": bench.says(request.text, target) == target,
                    "paraphrase": [
                        bench.says(t, target) == target for t in fact.paraphrase_prompts
                    ],
                    "neighbours": [a == b for a, b in zip(near_before, near_after, strict=True)],
                    "relative_norm": update.norm / norm,
                    "drift": self.drift(),
                }
            )
            history.rewind(0)
        return rows

    def table(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One line a cell: percent, relative norms, drift, and what C itself says."""
        table = []
        for cell, moment in self.cells.items():
            source, keys_per_dim, damping = cell
            mine = [
                row
                for row in rows
                if (row["source"], row["damping"]) == (source, damping)
                and row["keys_per_dim"] == round(keys_per_dim, 1)
            ]
            norms = [row["relative_norm"] for row in mine]
            low, drift, high = statistics.quantiles([row["drift"] for row in mine], n=4)
            table.append(
                {
                    "source": source,
                    "keys_per_dim": round(keys_per_dim, 1),
                    "damping": damping,
                    "ridge": 0.0 if moment is None else moment.ridge(),
                    "jitter": 0.0 if moment is None else moment.jitter,
                    "change": self.changes.get(cell),
                    "success": 100 * statistics.mean(row["success"] for row in mine),
                    "paraphrase": 100
                    * statistics.mean(x for row in mine for x in row["paraphrase"]),
                    "neighbours_unchanged": 100
                    * statistics.mean(x for row in mine for x in row["neighbours"]),
                    "drift_median": drift,
                    "drift_quartiles": [low, high],
                    "norm_median": statistics.median(norms),
                    "norm_max": max(norms),
                }
            )
        return table


def plot(results: Path, out: Path) -> None:
    """Four curves against keys per dimension, one line a source and ridge."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "rome_fast", "svg.fonttype": "none"})
    from matplotlib import pyplot

    table = json.loads(results.read_text())["summary"]
    panels = {
        "paraphrase": "paraphrases edited, %",
        "neighbours_unchanged": "neighbours unchanged, %",
        "drift_median": "KL on other text, nats a token",
        "norm_median": "norm of the update / norm of W",
    }
    identity = next(row for row in table if row["source"] == "identity")
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), sharex=True)
    for axis, (field, title) in zip(axes.flat, panels.items(), strict=True):
        for source, damping in itertools.product(("real", "sampled"), DAMPINGS):
            rows = [r for r in table if (r["source"], r["damping"]) == (source, damping)]
            axis.plot(
                [r["keys_per_dim"] for r in rows],
                [r[field] for r in rows],
                color="C0" if source == "real" else "C1",
                linestyle="-" if damping == "auto" else ":",
                marker=".",
                label=f"{source} text, {'automatic' if damping == 'auto' else 'no'} ridge",
            )
        axis.axhline(identity[field], color="grey", lw=0.8, ls="--", label="identity")
        axis.set_xscale("log")
        axis.set_title(title, fontsize=10)
        if field == "drift_median":
            axis.set_yscale("log")
    for axis in axes[1]:
        axis.set_xlabel("keys per dimension of C")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", nargs="+", type=Path, help="text files, one text a line")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", nargs=2, type=Path, metavar=("RESULTS", "PICTURE"))
    args = parser.parse_args()
    if args.plot:
        plot(*args.plot)
        return
    warnings.simplefilter("ignore", rome_fast.errors.SecondMomentWarning)
    study = Study(args.texts)
    facts = random.Random(1).sample(study.bench.facts, args.edits)
    rows = []
    for number, fact in enumerate(facts, 1):
        rows += study.edit(fact)
        if number % 10 == 0:
            print(number, "edits", flush=True)
            report = {
                "setting": setting(),
                "texts": [path.name for path in args.texts],
                "edits": number,
                "summary": study.table(rows),
            }
            args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
