"""What a report shows, in which order and in which words; the same in the terminal and in HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rome_fast.evaluate.metrics import ANY_HOP, changes

if TYPE_CHECKING:
    from rome_fast.evaluate.result import CaseResult, EvaluationData, Metric

STAGES = {"before": "before", "edit_time": "after its edit", "after": "after"}
# What a table has a column for.
COLUMNS = {**STAGES, "change": "after - before"}

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
        metrics: by column, a stage or "change"; one without it is missing.
    """

    group: str
    name: str
    meaning: str
    metrics: dict[str, Metric]

    @property
    def n(self) -> int:
        """Cases that it is a mean over, skipped records included."""
        return max(metric.n for metric in self.metrics.values())


def metric_rows(evaluation: EvaluationData) -> Iterator[MetricRow]:
    """All that was measured, group after group."""
    measured = {name for metrics in evaluation.metrics.values() for name in metrics}
    groups = {group: dict(names) for group, names in METRICS.items()}
    columns = {**evaluation.metrics, "change": changes(evaluation.cases, skipped(evaluation))}
    for kind, meaning in (("locality", "tokens as before"), ("portability", "tokens right")):
        own = sorted(name for name in measured if name.startswith(f"{kind}."))
        groups[kind.capitalize()] = dict.fromkeys(own, meaning)
    if ANY_HOP in measured:
        groups["Portability"][ANY_HOP] = "any question said greedily"
    for group, names in groups.items():
        for name, meaning in names.items():
            if name in measured:
                found = {at: metrics[name] for at, metrics in columns.items() if name in metrics}
                yield MetricRow(group, name, meaning, found)


def columns_of(evaluation: EvaluationData) -> list[str]:
    """The stages that it has, in order of time, and where it has both ends, the change."""
    stages = [stage for stage in STAGES if stage in evaluation.metrics]
    return stages + ["change"] * ("before" in stages and "after" in stages)


def is_share(name: str) -> bool:
    """Whether a metric is a share or a probability, which is shown in percent."""
    first, last = ("wild_", "stress_"), ("_acc", "_exact", "_prob", "_unchanged")
    return name in SHARES or name.endswith(last) or "." in name or name.startswith(first)


def number(name: str, value: float) -> str:
    """A metric's value as it is read."""
    return f"{100 * value:.1f}" if is_share(name) else f"{value:.3f}"


def probability(values: Mapping[str, float]) -> str:
    """Of a case's target after the edited prompt, as it is read; empty where it was not asked."""
    return f"{values['rewrite_prob']:.3f}" if "rewrite_prob" in values else ""


def interval(name: str, metric: Metric) -> str:
    """The value with half the width of its interval."""
    return f"{number(name, metric.mean)} ± {number(name, metric.mean - metric.low)}"


def cells(row: MetricRow, columns: Sequence[str]) -> list[str]:
    """A row's figures with their intervals, a change with its sign; empty where it has none."""
    found = [interval(row.name, row.metrics[at]) if at in row.metrics else "" for at in columns]
    signed = zip(found, columns, strict=True)
    return [f"+{x}" if at == "change" and x and x[0] != "-" else x for x, at in signed]


def worst_first(evaluation: EvaluationData) -> list[CaseResult]:
    """The cases, refused ones first, then those that score lowest on ``_GOOD``."""

    def goodness(case: CaseResult) -> tuple[bool, float, float]:
        values = case.stages["after"].values if "after" in case.stages else {}
        found = [values[name] for name in _GOOD if name in values]
        mean = sum(found) / len(found) if found else 0.0
        return case.error is None, mean, values.get("rewrite_prob", 0.0)

    return sorted(evaluation.cases, key=goodness)


def skipped(evaluation: EvaluationData) -> int:
    """How many records could not be read."""
    return int(evaluation.setting.get("n_skipped", 0))  # earlier files have none


def counted(evaluation: EvaluationData) -> str:
    """What became of the records, all of which are in the figures."""
    failed = evaluation.failed
    left = {
        "refused": sum(bool(case.stages) for case in failed),
        "not asked": sum(not case.stages for case in failed),
        "skipped": skipped(evaluation),
    }
    n_edited = len(evaluation.cases) - len(failed)
    told = [f"{n} {what}" for what, n in left.items() if n]
    told += ["counted as failures"] if told else []
    n_records = len(evaluation.cases) + left["skipped"]
    return f"{n_records} records: {', '.join([f'{n_edited} edited', *told])}"


def headline(evaluation: EvaluationData) -> str:
    """What was done, in a line."""
    setting = evaluation.setting
    return (
        f"{counted(evaluation)}; {setting['model']['name']}, "
        f"{'each alone' if setting['mode'] == 'single' else 'one after the other'}; "
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
        judge = _JUDGED[setting["judge"]]
        if changed := setting.get("n_changed"):
            judge += f", {changed} verdicts changed by hand"
        lines.append(f"questions put as {setting['context']!r}, answers judged by {judge}")
    return lines


_JUDGED = {
    "exact": "whether they are the target",
    "contained": "whether they hold the target",
    "own": "a judge of the user's",
}


def _how(setting: Mapping[str, Any]) -> str:
    form = setting.get("form", "weight")  # 0.1 knew no other, and wrote none
    if form != "weight":
        return f"one {form} for each subject"
    return f"{setting['hparams']['variant']}, second moment {setting['second_moment']}"
