"""Scores -> numbers: of one case, and of all of them with their intervals.

docs/metrics.md gives every definition with its source. Pure functions; nothing here runs a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from rome_fast.evaluate.records import EditRecord, Question
from rome_fast.evaluate.result import CaseResult, Metric, Reading
from rome_fast.evaluate.scoring import Score

# Half the width of a 95 % interval in standard errors.
Z = 1.96
# Metrics that the score S is the harmonic mean of.
SUCCESS = ("ES", "PS", "NS")

Scores = Mapping[str, Sequence[Score]]


def questions_of(record: EditRecord) -> dict[str, list[Question]]:
    """The questions of a record by purpose, in the order in which they are asked.

    ``X_new`` and ``X_true`` are the same prompts with either target; without ``target_true`` there
    are no ``rewrite_true`` and ``rephrase_true``. All are asked in the chat of the request, if any.
    """
    new, true = record.request.target, record.target_true
    objects = {"new": new} if true is None else {"new": new, "true": true}
    asked = {}
    for name, target in objects.items():
        # Behind the edited prompt as it was edited: with the request's space, if it says.
        asked[f"rewrite_{name}"] = [replace(record.rewrite, target=target)]
        asked[f"rephrase_{name}"] = [Question(text, target) for text in record.paraphrases]
    asked["neighborhood_true"] = list(record.neighborhood)
    asked["neighborhood_new"] = [Question(q.prompt, new) for q in record.neighborhood]
    for kind, groups in (("locality", record.locality), ("portability", record.portability)):
        for name, questions in groups.items():
            asked[f"{kind}.{name}"] = list(questions)
    chat = record.request.conversation
    if chat is not None:
        asked = {name: [replace(q, chat=chat) for q in of] for name, of in asked.items()}
    return {name: questions for name, questions in asked.items() if questions}


def case_values(scores: Scores, before: Scores | None = None) -> dict[str, float]:
    """The metrics of one case, from the scores of ``questions_of`` its record.

    Args:
        before: the scores of the unedited model, for what must be unchanged; None where
            ``scores`` are those.
    """
    values = {"rewrite_prob": math.exp(sum(scores["rewrite_new"][0].log_probs))}
    for letter, name, wanted, other in (
        ("E", "rewrite", "new", "true"),
        ("P", "rephrase", "new", "true"),
        ("N", "neighborhood", "true", "new"),
    ):
        answers = scores.get(f"{name}_{wanted}", ())
        pairs = told_apart(answers, scores.get(f"{name}_{other}", ()))
        if pairs:
            values[f"{letter}S"] = success(pairs)
            values[f"{letter}M"] = magnitude(pairs)
        if answers:
            values[f"{name}_acc"] = accuracy(answers)
            values[f"{name}_exact"] = exact(answers)
    for name, answers in scores.items():
        if name.startswith("portability."):
            values[name] = accuracy(answers)
        elif before is not None and name.startswith("locality."):
            values[name] = unchanged(answers, before[name])
    if before is not None and "neighborhood_true" in scores:
        kept = unchanged(scores["neighborhood_true"], before["neighborhood_true"])
        values["neighborhood_unchanged"] = kept
    return values


def read_values(readings: Sequence[Reading]) -> dict[str, float]:
    """Of answers that the model gave by itself: the share that is right, by group, and endless."""
    values = {}
    for group in dict.fromkeys(reading.group for reading in readings):
        mine = [reading for reading in readings if reading.group == group]
        values[f"wild_{group}"] = float(np.mean([reading.right for reading in mine]))
        endless = [reading.kind == "endless" for reading in mine]
        values[f"wild_{group}_endless"] = float(np.mean(endless))
    return values


def told_apart(wanted: Sequence[Score], other: Sequence[Score]) -> list[tuple[Score, Score]]:
    """(wanted, other) answers to the same prompts, without prompts where both are equal."""
    pairs = list(zip(wanted, other, strict=True)) if other else []
    return [(a, b) for a, b in pairs if a.target_ids != b.target_ids]


def success(pairs: Sequence[tuple[Score, Score]]) -> float:
    """Share of prompts with a lower NLL a token for the wanted answer than for the other one."""
    return float(np.mean([wanted.nll < other.nll for wanted, other in pairs]))


def magnitude(pairs: Sequence[tuple[Score, Score]]) -> float:
    """Mean of exp(-NLL a token) of the wanted answer minus that of the other one."""
    return float(np.mean([math.exp(-wanted.nll) - math.exp(-other.nll) for wanted, other in pairs]))


def accuracy(scores: Sequence[Score]) -> float:
    """Mean over prompts of the share of the answer's tokens that are the likeliest ones."""
    return float(np.mean([score.accuracy for score in scores]))


def exact(scores: Sequence[Score]) -> float:
    """Share of prompts after which greedy decoding says the whole answer."""
    return float(np.mean([score.exact for score in scores]))


def unchanged(after: Sequence[Score], before: Sequence[Score]) -> float:
    """Mean over prompts of the share of the answer's places with the same likeliest token."""
    pairs = zip(after, before, strict=True)
    return float(np.mean([np.mean(np.equal(a.argmax_ids, b.argmax_ids)) for a, b in pairs]))


def summarise(cases: Iterable[CaseResult]) -> dict[str, dict[str, Metric]]:
    """Stage -> name -> mean over the cases that have a value; and S, where all its parts exist."""
    rows: dict[str, list[Mapping[str, float]]] = {}
    for case in cases:
        for name, stage in case.stages.items():
            rows.setdefault(name, []).append(stage.values)
    return {name: _summary(values) for name, values in rows.items()}


def _summary(rows: Sequence[Mapping[str, float]]) -> dict[str, Metric]:
    names = dict.fromkeys(name for row in rows for name in row)
    metrics = {name: mean_metric([row[name] for row in rows if name in row]) for name in names}
    if all(name in metrics for name in SUCCESS):
        triples = [[row.get(name, math.nan) for name in SUCCESS] for row in rows]
        metrics["S"] = score_metric(triples)
    return metrics


def mean_metric(values: Sequence[float]) -> Metric:
    """The mean, with the normal interval of its standard error."""
    n, mean = len(values), float(np.mean(values))
    half = Z * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return Metric(mean, mean - half, mean + half, n)


def score_metric(triples: Sequence[Sequence[float]]) -> Metric:
    """S: the harmonic mean of the means of ES, PS and NS, with its jackknife interval.

    The jackknife leaves out one case at a time; of a mean it gives the usual standard error.

    Args:
        triples: ES, PS and NS of each case, NaN where it has none.
    """
    table = np.asarray(triples, dtype=np.float64)
    n, there = len(table), np.isfinite(table)
    sums, counts = np.nansum(table, axis=0), there.sum(axis=0)
    score = float(_harmonic_mean(sums / counts))
    half = 0.0
    if (counts > 1).all():
        without = (sums - np.where(there, table, 0)) / (counts - there)
        left_out = _harmonic_mean(without)
        half = Z * math.sqrt((n - 1) / n * float(((left_out - left_out.mean()) ** 2).sum()))
    return Metric(score, score - half, score + half, n)


def _harmonic_mean(x: np.ndarray) -> np.ndarray:
    """Along the last axis; 0 where one of the numbers is 0."""
    zero = (x == 0).any(axis=-1)
    inverses = 1 / np.where(x == 0, 1, x)
    return np.where(zero, 0.0, x.shape[-1] / inverses.sum(axis=-1))
