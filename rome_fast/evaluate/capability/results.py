"""What lm-evaluation-harness returns -> scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from rome_fast.evaluate.capability.scores import TaskScore

Rows = Sequence[Mapping[str, Any]]


def scores_of(results: Mapping[str, Any]) -> dict[str, dict[str, TaskScore]]:
    """Task -> metric -> score, the groups' after those of the tasks.

    A metric has the name of its filter behind it where it has one ("exact_match,strict-match").

    Args:
        results: of ``lm_eval.evaluate``, with samples.
    """
    found = {
        task: _scores_of_task(results["results"][task], rows)
        for task, rows in results["samples"].items()
    }
    for group, row in results.get("groups", {}).items():
        members = list(_members(results["group_subtasks"], group))
        found[group] = _scores_of_group(row, {task: found[task] for task in members})
    return found


def _scores_of_task(row: Mapping[str, Any], rows: Rows) -> dict[str, TaskScore]:
    scores = {}
    for key, metric, filter_name in _metrics(row):
        mine = [of for of in rows if of["filter"] == filter_name and metric in of["metrics"]]
        values = {_sample(of): of[metric] for of in mine}
        scores[_name(key)] = _score(row, key, len(mine), values)
    return scores


def _scores_of_group(
    row: Mapping[str, Any], members: Mapping[str, Mapping[str, TaskScore]]
) -> dict[str, TaskScore]:
    scores = {}
    for key, _, _ in _metrics(row):
        name = _name(key)
        values = {
            f"{task}/{sample}": value
            for task, of in members.items()
            if name in of
            for sample, value in of[name].samples.items()
        }
        scores[name] = _score(row, key, row["sample_count"][key], values)
    return scores


def _metrics(row: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(key, metric, filter) of every metric in a row of results, but for their standard errors."""
    for key in row:
        metric, comma, filter_name = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            yield key, metric, filter_name


def _score(row: Mapping[str, Any], key: str, n: int, values: Mapping[str, Any]) -> TaskScore:
    metric, _, filter_name = key.partition(",")
    stderr = row.get(f"{metric}_stderr,{filter_name}")
    value = float(row[key])
    return TaskScore(
        value,
        float(stderr) if isinstance(stderr, Real) else None,  # "N/A" where there is none
        n,
        _if_its_mean(values, value),
    )


def _if_its_mean(values: Mapping[str, Any], value: float) -> dict[str, float]:
    """The samples' scores, if the value is their mean."""
    if not values or not all(isinstance(score, Real | np.bool_) for score in values.values()):
        return {}
    scores = {sample: float(score) for sample, score in values.items()}
    mean = float(np.mean(list(scores.values())))
    return scores if np.isclose(mean, value, rtol=1e-9, atol=1e-12, equal_nan=True) else {}


def _name(key: str) -> str:
    return key.removesuffix(",none")


def _sample(row: Mapping[str, Any]) -> str:
    parts = "".join(row[f"{part}_hash"] for part in ("doc", "prompt", "target"))
    return f"{row['doc_id']}:{hashlib.sha256(parts.encode()).hexdigest()[:8]}"


def _members(children: Mapping[str, Sequence[str]], group: str) -> Iterator[str]:
    """The tasks of a group and of the groups in it."""
    for name in children[group]:
        if name in children:
            yield from _members(children, name)
        else:
            yield name
