"""A mean with its 95 % interval: what every figure over cases or samples is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Half the width of a 95 % interval in standard errors.
Z = 1.96


@dataclass(frozen=True)
class Metric:
    """A mean over cases, or samples of a task, with its 95 % interval.

    Attributes:
        low, high: normal interval, mean -+ 1.96 standard errors over the cases (of the score S,
            jackknife errors; of two evaluations' difference, of a bootstrap); equal to the mean
            where there is one case.
        n: cases that have this value.
    """

    mean: float
    low: float
    high: float
    n: int


def mean_metric(values: Sequence[float]) -> Metric:
    """The mean, with the normal interval of its standard error."""
    n, mean = len(values), float(np.mean(values))
    half = Z * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return Metric(mean, mean - half, mean + half, n)
