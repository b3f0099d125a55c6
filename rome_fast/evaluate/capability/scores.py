"""Scores of tasks, and what two of them on the same samples differ by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rome_fast.evaluate.interval import Metric, mean_metric


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task, or of a group of tasks.

    Attributes:
        value: as lm-evaluation-harness has it.
        stderr: its standard error as lm-evaluation-harness estimates it, None where it does not.
        n: samples that the value is of.
        samples: sample -> score. A sample is named by its number in the task and eight digits of
            the hash of its document, prompt and target, in a group after its task's name. Empty
            where the value is not the mean over the samples, as a perplexity.
    """

    value: float
    stderr: float | None
    n: int
    samples: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskDifference:
    """One metric of one task before and after.

    Attributes:
        before, after: means over the samples that both have; the two values where there is no
            ``difference``.
        difference: mean of after minus before over these samples, with its 95 % interval; None
            where a metric is no mean over samples, or no sample is the same.
    """

    before: float
    after: float
    difference: Metric | None


# Task -> metric -> score.
Tasks = Mapping[str, Mapping[str, TaskScore]]


def differences(before: Tasks, after: Tasks) -> dict[str, dict[str, TaskDifference]]:
    """Task -> metric -> difference, of all that both have."""
    found = {
        task: {
            name: _difference(before[task][name], score)
            for name, score in metrics.items()
            if name in before[task]
        }
        for task, metrics in after.items()
        if task in before
    }
    return {task: metrics for task, metrics in found.items() if metrics}


def _difference(before: TaskScore, after: TaskScore) -> TaskDifference:
    shared = [sample for sample in before.samples if sample in after.samples]
    if not shared:
        return TaskDifference(before.value, after.value, None)
    first, second = (np.array([of.samples[key] for key in shared]) for of in (before, after))
    changed = mean_metric((second - first).tolist())
    return TaskDifference(float(first.mean()), float(second.mean()), changed)
