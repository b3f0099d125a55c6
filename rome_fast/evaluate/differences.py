"""What differs between two evaluations of the same records, as data: by how much, how surely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rome_fast.evaluate.metrics import SUCCESS, harmonic_mean
from rome_fast.evaluate.paired import N_DRAWS, SEED, Array, holm, intervals, is_exact, p_values
from rome_fast.evaluate.result import Metric

# Corrected p-values below it are shown in bold.
SURE = 0.05

Values = Mapping[str, float]


@dataclass(frozen=True)
class Difference:
    """One metric of two evaluations, on the cases that both have.

    Attributes:
        first, second: the means over the pairs.
        difference: second minus first, with its 95 % bootstrap interval.
        p: of the paired sign-flip test, two-sided.
        corrected: p by Holm, for all metrics that are compared.
    """

    name: str
    first: float
    second: float
    difference: Metric
    p: float
    corrected: float

    @property
    def is_sure(self) -> bool:
        """Whether the corrected p-value is below .05."""
        return self.corrected < SURE


@dataclass(frozen=True)
class ComparisonData:
    """The measured part of a Comparison.

    Attributes:
        stage: of both evaluations.
        counted: what became of the records of the first, and of the second.
        n_pairs: cases that are in both; the others are in no figure.
    """

    stage: str
    counted: tuple[str, str]
    n_pairs: int
    differences: tuple[Difference, ...]

    @property
    def method(self) -> str:
        """How intervals and p-values were made, in a line."""
        draws = f"all {2**self.n_pairs:,}" if is_exact(self.n_pairs) else f"{N_DRAWS:,}"
        return (
            f"{self.n_pairs} records in pairs, each with all of its prompts; interval: 95 %, of "
            f"{N_DRAWS:,} bootstrap samples of records; p: {draws} sign flips of records, "
            f"two-sided; p Holm: corrected for {len(self.differences)} metrics, bold below {SURE}; "
            f"seed {SEED}"
        )


def differences(first: Sequence[Values], second: Sequence[Values]) -> tuple[Difference, ...]:
    """Every metric that both have, and S where its parts are there.

    Args:
        first, second: the values of the same records in the same order.
    """
    pairs = list(zip(first, second, strict=True))
    names = list(dict.fromkeys(name for a, b in pairs for name in a if name in b))
    a, b = (
        np.array([[row[i].get(name, np.nan) for name in names] for row in pairs], np.float64)
        for i in (0, 1)
    )
    # A perplexity may be infinite: that pair has no difference.
    alone = ~(np.isfinite(a) & np.isfinite(b))
    a[alone] = b[alone] = np.nan
    there = np.isfinite(a)
    parts = [names.index(name) for name in SUCCESS if name in names]
    has_score = len(parts) == len(SUCCESS)

    def figures(sums: Array, counts: Array) -> Array:
        with np.errstate(invalid="ignore"):  # a sample may have none of a value
            means = sums / counts
        score = [harmonic_mean(means[..., parts])[..., None]] if has_score else []
        return np.concatenate([means, *score], axis=-1)

    counts = there.sum(axis=0).astype(np.float64)
    means = [figures(np.nansum(x, axis=0), counts) for x in (a, b)]
    low, high = intervals(a, b, figures)
    p = p_values(a, b, figures)
    n = [*there.sum(axis=0), *([there[:, parts].any(axis=1).sum()] if has_score else [])]
    columns = zip([*names, *["S"] * has_score], *means, low, high, n, p, holm(p), strict=True)
    return tuple(_difference(name, *map(float, figures)) for name, *figures in columns)


def _difference(
    name: str,
    first: float,
    second: float,
    low: float,
    high: float,
    n: float,
    p: float,
    corrected: float,
) -> Difference:
    difference = Metric(second - first, low, high, int(n))
    return Difference(name, first, second, difference, p, corrected)
