"""Scores -> numbers: of one case, and of all of them with their intervals.

docs/metrics.md gives every definition with its source. Pure functions; nothing here runs a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from rome_fast.evaluate.interval import Metric, Z, mean_metric
from rome_fast.evaluate.records import MULTI_HOP, EditRecord, Question
from rome_fast.evaluate.result import CaseResult, Reading
from rome_fast.evaluate.scoring import Score

# Metrics that the score S is the harmonic mean of.
SUCCESS = ("ES", "PS", "NS")
# Shares in which a record that could not be read or asked counts as the failure that it is. Of its
# neighbours nothing is known: it is in no mean of theirs.
FAILED = frozenset(
    (
        *("ES", "rewrite_prob", "rewrite_acc", "rewrite_exact", "wild_rewrite"),
        *("PS", "rephrase_acc", "rephrase_exact", "wild_rephrase"),
    )
)

# Whether any question of that group is answered right (MQuAKE).
ANY_HOP = f"portability.{MULTI_HOP}.any"
# Prompts of edits with the true target, which is compared with the new one.
_EITHER = ("rewrite_true", "rephrase_true")

Scores = Mapping[str, Sequence[Score]]


def questions_of(record: EditRecord) -> dict[str, list[Question]]:
    """The questions of a record by purpose, in the order in which they are asked.

    ``X_new`` and ``X_true`` are the same prompts with either target; without ``target_true``, of
    any of the edits, there are no ``rewrite_true`` and ``rephrase_true``. Each edit's are asked in
    the chat of its request, if any.
    """
    asked: dict[str, list[Question]] = {}
    for fact in record.facts:
        for name, questions in _questions_of_fact(fact).items():
            asked.setdefault(name, []).extend(questions)
    if any(fact.target_true is None for fact in record.facts):
        asked = {name: of for name, of in asked.items() if name not in _EITHER}
    return {name: questions for name, questions in asked.items() if questions}


def _questions_of_fact(record: EditRecord) -> dict[str, list[Question]]:
    """Those of one edit alone."""
    new, true = record.request.target, record.target_true
    objects = {"new": new} if true is None else {"new": new, "true": true}
    asked: dict[str, list[Question]] = {}
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
    return asked


def case_values(scores: Scores, before: Scores | None = None) -> dict[str, float]:
    """The metrics of one case, from the scores of ``questions_of`` its record.

    Args:
        before: the scores of the unedited model, for what must be unchanged; None where
            ``scores`` are those.
    """
    probs = [math.exp(sum(score.log_probs)) for score in scores["rewrite_new"]]
    values = {"rewrite_prob": float(np.mean(probs))}
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
    if hops := scores.get(f"portability.{MULTI_HOP}"):
        values[ANY_HOP] = float(any(score.exact for score in hops))
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


def summarise(cases: Sequence[CaseResult], n_skipped: int = 0) -> dict[str, dict[str, Metric]]:
    """Stage -> name -> mean over the cases that have a value; and S, where all its parts exist.

    Args:
        n_skipped: records that could not be read; see ``stage_rows``.
    """
    stages = dict.fromkeys(name for case in cases for name in case.stages)
    return {stage: _summary(stage_rows(cases, stage, n_skipped)) for stage in stages}


def stage_rows(
    cases: Sequence[CaseResult], stage: str, n_skipped: int = 0
) -> list[Mapping[str, float]]:
    """The values of each case at a stage, then of the records that could not be read.

    What was not asked counts 0 in the shares of ``FAILED`` that the others have, at every stage: an
    edit that was not made changes nothing.
    """
    found = [case.stages[stage].values if stage in case.stages else None for case in cases]
    names = dict.fromkeys(name for row in found if row is not None for name in row)
    failure = {name: 0.0 for name in names if name in FAILED}
    return [failure if row is None else row for row in found] + [failure] * n_skipped


def changes(cases: Sequence[CaseResult], n_skipped: int = 0) -> dict[str, Metric]:
    """Name -> "after" minus "before", the mean over the cases that have both; and that of S."""
    before, after = (stage_rows(cases, stage, n_skipped) for stage in ("before", "after"))
    pairs = list(zip(before, after, strict=True))
    names = dict.fromkeys(name for then, now in pairs for name in now if name in then)
    found = {
        name: mean_metric([b[name] - a[name] for a, b in pairs if name in a and name in b])
        for name in names
    }
    if all(name in found for name in SUCCESS):
        found["S"] = score_metric(_triples(after), _triples(before))
    return found


def _summary(rows: Sequence[Mapping[str, float]]) -> dict[str, Metric]:
    names = dict.fromkeys(name for row in rows for name in row)
    metrics = {name: mean_metric([row[name] for row in rows if name in row]) for name in names}
    if all(name in metrics for name in SUCCESS):
        metrics["S"] = score_metric(_triples(rows))
    return metrics


def _triples(rows: Sequence[Mapping[str, float]]) -> list[list[float]]:
    return [[row.get(name, math.nan) for name in SUCCESS] for row in rows]


def score_metric(
    triples: Sequence[Sequence[float]], minus: Sequence[Sequence[float]] | None = None
) -> Metric:
    """S: the harmonic mean of the means of ES, PS and NS, with its jackknife interval.

    The jackknife leaves out one case at a time; of a mean it gives the usual standard error.

    Args:
        triples: ES, PS and NS of each case, NaN where it has none.
        minus: of the same cases at another time, whose S is subtracted.
    """
    score, left_out = _scores(triples)
    if minus is not None:
        other = _scores(minus)
        both = min(len(left_out), len(other[1]))  # one of them may have none
        score, left_out = score - other[0], left_out[:both] - other[1][:both]
    n, half = len(triples), 0.0
    if len(left_out):
        half = Z * math.sqrt((n - 1) / n * float(((left_out - left_out.mean()) ** 2).sum()))
    return Metric(score, score - half, score + half, n)


def _scores(triples: Sequence[Sequence[float]]) -> tuple[float, np.ndarray]:
    """S, and S without each of the cases; of the latter none where a mean has a single value."""
    table = np.asarray(triples, dtype=np.float64)
    there = np.isfinite(table)
    sums, counts = np.nansum(table, axis=0), there.sum(axis=0)
    score = float(harmonic_mean(sums / counts))
    if not (counts > 1).all():
        return score, np.empty(0)
    return score, harmonic_mean((sums - np.where(there, table, 0)) / (counts - there))


def harmonic_mean(x: np.ndarray) -> np.ndarray:
    """Along the last axis; 0 where one of the numbers is 0."""
    zero = (x == 0).any(axis=-1)
    inverses = 1 / np.where(x == 0, 1, x)
    return np.where(zero, 0.0, x.shape[-1] / inverses.sum(axis=-1))
