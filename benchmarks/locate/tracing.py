"""Where the embedded model's facts sit: traces of many facts, averaged, and trial edits by layer.

    python -m benchmarks.locate.tracing --out benchmarks/results/tracing.json
    python -m benchmarks.locate.tracing --plot benchmarks/results/tracing.json docs/tracing.svg

Tokens are averaged by their part in the prompt, as in the paper's figure 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import rome_fast
from rome_fast.bench.setting import setting
from rome_fast.demo import DemoFact
from rome_fast.evaluate.records import EditRecord, Question
from rome_fast.locate import Trace
from rome_fast.locate.plot import save_heat_maps
from rome_fast.locate.trace import TITLES
from rome_fast.locate.tracing import TracedPrompt

PARTS = (
    "first of subject*",
    "middle of subject*",
    "last of subject*",
    "first after it",
    "further tokens",
    "last token",
)
WINDOWS = (1, 3)


def parts_of(trace: Trace) -> list[str]:
    """The part of each token in the prompt; a subject of one token is its own last one."""
    start, end = trace.subject_range
    parts = ["further tokens"] * len(trace.tokens)
    parts[start:end] = ["middle of subject*"] * (end - start)
    parts[start] = "first of subject*"
    parts[end - 1] = "last of subject*"
    if end < len(parts):
        parts[end] = "first after it"
    if end + 1 < len(parts):
        parts[-1] = "last token"
    return parts


def spread_facts(facts: list[DemoFact], n_per_relation: int) -> list[DemoFact]:
    """The same number from every relation, evenly over its facts."""
    chosen = []
    for relation in dict.fromkeys(fact.relation for fact in facts):
        of_it = [fact for fact in facts if fact.relation == relation]
        chosen += [of_it[i * len(of_it) // n_per_relation] for i in range(n_per_relation)]
    return chosen


def averages(traces: list[Trace]) -> dict[str, dict[str, list[float]]]:
    """Mean score by kind, part and layer; each fact that has the part counts once."""
    means: dict[str, dict[str, list[float]]] = {}
    for kind in traces[0].scores:
        means[kind] = {}
        for part in PARTS:
            rows = []
            for trace in traces:
                at = torch.tensor([p == part for p in parts_of(trace)])
                if at.any():
                    rows.append(trace.scores[kind][at].mean(0))
            means[kind][part] = torch.stack(rows).mean(0).tolist()
    return means


def last_token_of_subject(traces: list[Trace], kind: str) -> dict[str, Any]:
    """Of what returns there: mean and its 95 % interval by layer, and where it is the most."""
    rows = torch.stack([t.scores[kind][t.subject_range[1] - 1] - t.low for t in traces])
    half = 1.96 * rows.std(0) / len(rows) ** 0.5
    peaks = Counter(rows.argmax(1).tolist())
    return {
        "effect": rows.mean(0).tolist(),
        "half_interval": half.tolist(),
        "facts_with_most_at_layer": [peaks[layer] for layer in range(rows.shape[1])],
    }


def measure(n_per_relation: int, n_trials: int) -> dict[str, Any]:
    model, tok, facts = rome_fast.demo.load()
    chosen = spread_facts(facts, n_per_relation)
    report: dict[str, Any] = {"setting": setting(), "windows": {}}
    for window in WINDOWS:
        traces = [
            rome_fast.locate(model, tok, f.prompt, f.subject, window=window, progress=False)
            for f in chosen
        ]
        # The reference traces what the model knows.
        known = [
            trace
            for trace, fact in zip(traces, chosen, strict=True)
            if f" {fact.target}".startswith(trace.answer)
        ]
        report["windows"][window] = {
            "facts": len(chosen),
            "known": len(known),
            "high": statistics.mean(trace.high for trace in known),
            "low": statistics.mean(trace.low for trace in known),
            "settings": {k: v for k, v in known[0].settings.items() if k != "noise_std"},
            "scores": averages(known),
            "last_of_subject": {kind: last_token_of_subject(known, kind) for kind in TITLES},
        }
    records = [fact.record() for fact in chosen[:: max(1, len(chosen) // n_trials)]]
    alike = sharing_last_token(model, tok, facts)[:n_trials]
    for name, tried, layers in ("plan", records, range(6)), ("shared token", alike, (0, 2)):
        plan = rome_fast.suggest_layer(model, tok, tried, layers=layers, window=1)
        report[name] = plan.to_dict()
        del report[name]["settings"]["context_templates"]
    return report


def sharing_last_token(model: Any, tok: Any, facts: list[DemoFact]) -> list[EditRecord]:
    """Facts whose neighbours are other subjects with the same last token.

    The token is where the edit is written, so in low layers these are the nearest neighbours.
    """
    groups: dict[tuple[str, int], list[DemoFact]] = {}
    for fact in facts:
        traced = TracedPrompt.of(model, tok, fact.record().request)
        last = traced.ids[traced.subject[1] - 1]
        groups.setdefault((fact.prompt, last), []).append(fact)
    records = []
    for first, *others in groups.values():
        asked = [
            Question(other.prompt.replace("{}", other.subject), other.target)
            for other in others
            if other.subject != first.subject
        ]
        if asked:
            records.append(replace(first.record(), neighborhood=tuple(asked[:4])))
    return records


def plot(results: Path, out: Path) -> None:
    found = json.loads(results.read_text(encoding="utf-8"))["windows"]["1"]
    panels = {
        TITLES[kind]: torch.tensor([parts[part] for part in PARTS])
        for kind, parts in found["scores"].items()
    }
    title = (
        f"mean probability of the answer, {found['known']} facts: {found['low']:.2f} with noise on "
        f"the subject (*), {found['high']:.2f} without"
    )
    save_heat_maps(out, panels, PARTS, found["low"], title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-relation", type=int, default=4)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", nargs=2, type=Path, metavar=("RESULTS", "PICTURE"))
    args = parser.parse_args()
    if args.plot:
        plot(*args.plot)
    else:
        report = measure(args.per_relation, args.trials)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
