"""What a report shows, in which order and in which words; the same in the terminal and in HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rome_fast.evaluate.metrics import ANY_HOP

if TYPE_CHECKING:
    from rome_fast.evaluate.result import CaseResult, EvaluationData, Metric

STAGES = {"before": "before", "edit_time": "after its edit", "after": "after"}

# Group -> name of a metric -> in words. docs/metrics.md defines them all.
METRICS = {
    "Efficacy": {
        "ES": "new answer likelier than the true one",
        "EM": "by how much",
        "rewrite_exact": "said greedily",
        "rewrite_acc": "tokens right",
        "rewrite_prob": "probability",
    },
    "Paraphrases": {
        "PS": "new answer likelier than the true one",
        "PM": "by how much",
        "rephrase_exact": "said greedily",
        "rephrase_acc": "tokens right",
    },
    "Neighbours": {
        "NS": "true answer likelier than the new one",
        "NM": "by how much",
        "neighborhood_exact": "said greedily",
        "neighborhood_acc": "tokens right",
        "neighborhood_unchanged": "tokens as before",
    },
    "All three": {"S": "harmonic mean of ES, PS, NS"},
    "Answers to their natural stop": {
        "wild_rewrite": "the edited prompt: right",
        "wild_rephrase": "paraphrases: right",
        "wild_neighborhood": "neighbours: right",
        "wild_rewrite_endless": "the edited prompt: without an end",
        "wild_rephrase_endless": "paraphrases: without an end",
        "wild_neighborhood_endless": "neighbours: without an end",
    },
    "Under stress": {
        "stress_prefix_50": "behind 50 tokens of other text: said greedily",
        "stress_prefix_200": "behind 200 tokens of other text: said greedily",
        "stress_negated": "negated: no longer said greedily",
        "stress_reverse": "asked in reverse: tokens right",
        "stress_same_subject": "other facts of the subject: tokens as before",
    },
    "Generations": {
        "ngram_entropy": "entropy of the words, bits",
        "reference_score": "likeness to references",
    },
}

# Shares; the others are differences of probabilities, bits or cosines.
SHARES = ("S", "ES", "PS", "NS")

# What makes a case good, as far as it was measured.
_GOOD = ("rewrite_exact", "rephrase_exact", "neighborhood_unchanged")


@dataclass(frozen=True)
class MetricRow:
    """One metric at all stages.

    Attributes:
        group: where it belongs.
        metrics: by stage; a stage without it is missing.
    """

    group: str
    name: str
    meaning: str
    metrics: dict[str, Metric]


def metric_rows(evaluation: EvaluationData) -> Iterator[MetricRow]:
    """All that was measured, group after group."""
    measured = {name for metrics in evaluation.metrics.values() for name in metrics}
    groups = {group: dict(names) for group, names in METRICS.items()}
    for kind, meaning in (("locality", "tokens as before"), ("portability", "tokens right")):
        own = sorted(name for name in measured if name.startswith(f"{kind}."))
        groups[kind.capitalize()] = dict.fromkeys(own, meaning)
    if ANY_HOP in measured:
        groups["Portability"][ANY_HOP] = "any question said greedily"
    for group, names in groups.items():
        for name, meaning in names.items():
            if name in measured:
                stages = evaluation.metrics.items()
                found = {stage: metrics[name] for stage, metrics in stages if name in metrics}
                yield MetricRow(group, name, meaning, found)


def stages_of(evaluation: EvaluationData) -> list[str]:
    """The stages that it has, in order of time."""
    return [stage for stage in STAGES if stage in evaluation.metrics]


def is_share(name: str) -> bool:
    """Whether a metric is a share or a probability, which is shown in percent."""
    first, last = ("wild_", "stress_"), ("_acc", "_exact", "_prob", "_unchanged")
    return name in SHARES or name.endswith(last) or "." in name or name.startswith(first)


def number(name: str, value: float) -> str:
    """A metric's value as it is read."""
    return f"{100 * value:.1f}" if is_share(name) else f"{value:.3f}"


def interval(name: str, metric: Metric) -> str:
    """The value with half the width of its interval."""
    return f"{number(name, metric.mean)} ± {number(name, metric.mean - metric.low)}"


def worst_first(evaluation: EvaluationData) -> list[CaseResult]:
    """The cases, refused ones first, then those that score lowest on ``_GOOD``."""

    def goodness(case: CaseResult) -> tuple[bool, float, float]:
        values = case.stages["after"].values if "after" in case.stages else {}
        found = [values[name] for name in _GOOD if name in values]
        mean = sum(found) / len(found) if found else 0.0
        return case.error is None, mean, values.get("rewrite_prob", 0.0)

    return sorted(evaluation.cases, key=goodness)


def headline(evaluation: EvaluationData) -> str:
    """What was done, in a line."""
    setting, failed = evaluation.setting, len(evaluation.failed)
    refused = f", {failed} refused" if failed else ""
    return (
        f"{len(evaluation.cases)} edits of {setting['model']['name']}, "
        f"{'each alone' if setting['mode'] == 'single' else 'one after the other'}{refused}; "
        f"{setting['weight_name']}, {_how(setting)}"
    )


def rules(evaluation: EvaluationData) -> list[str]:
    """The protocols that it follows, a line each, and what else its numbers depend on."""
    setting = evaluation.setting
    lines = [
        f"{p['name']} ({p['source']}): {p['prompts']}; decoding {p['decoding']}; "
        f"stops {p['stop']}; judged by {p['judge']}"
        for p in setting.get("protocols", ())
    ]
    if "context" in setting:
        judge = "a judge of the user's" if setting["judge"] == "own" else "words"
        lines.append(f"questions put as {setting['context']!r}, answers judged by {judge}")
    return lines


def _how(setting: Mapping[str, Any]) -> str:
    form = setting.get("form", "weight")  # 0.1 knew no other, and wrote none
    if form != "weight":
        return f"one {form} for each subject"
    return f"{setting['hparams']['variant']}, second moment {setting['second_moment']}"
