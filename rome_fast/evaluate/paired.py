"""Differences between two evaluations of the same records: intervals and p-values.

The record is what is drawn and what is exchanged, with all of its prompts: its neighbours or its
paraphrases are no independent observations. Pure functions of arrays [n_records, n_values].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# (sums [..., n_values], counts [..., n_values]) -> figures [..., n_figures]
Figures = Callable[[Array, Array], Array]

N_DRAWS = 10_000
SEED = 0
# Records of a block of draws: 32 MB.
_BLOCK = 2**22
# What sums of other orders differ by: a draw that is as extreme as what was found must count.
_ROUNDING = 1e-10


def intervals(first: Array, second: Array, figures: Figures) -> tuple[Array, Array]:
    """Bounds [n_figures] of the 95 % interval of second minus first.

    Percentiles of ``N_DRAWS`` bootstrap samples of records, the same ones for both sides and for
    all figures.

    Args:
        first, second: values, NaN in both where a record has none on one of the sides.
    """
    n, there = len(first), np.isfinite(first).astype(np.float64)
    first, second = np.nan_to_num(first), np.nan_to_num(second)
    rng = np.random.default_rng(SEED)
    found = []
    for size in _blocks(N_DRAWS, n):
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        counts = times @ there
        found.append(figures(times @ second, counts) - figures(times @ first, counts))
    # Of a value that few records have, a sample may have none.
    low, high = np.nanpercentile(np.concatenate(found), [2.5, 97.5], axis=0)
    return low, high


def p_values(first: Array, second: Array, figures: Figures) -> Array:
    """Two-sided p-values [n_figures] of the sign-flip test, which exchanges a record's two sides.

    Under the null it does not matter which side is which. All exchanges are taken where there are
    at most ``N_DRAWS``, else that many are drawn, and what was found counts as one more (Phipson
    and Smyth, 2010).

    Args:
        first, second: as in ``intervals``.
    """
    counts = np.isfinite(first).sum(axis=0).astype(np.float64)
    first, second = np.nan_to_num(first), np.nan_to_num(second)
    sums = first.sum(axis=0), second.sum(axis=0)
    found = np.abs(figures(sums[1], counts) - figures(sums[0], counts)) - _ROUNDING
    extreme, n_taken = np.zeros(found.shape), 0
    for exchanged in exchanges(len(first)):
        moved = exchanged @ (second - first)
        there = figures(sums[1] - moved, counts) - figures(sums[0] + moved, counts)
        extreme += (np.abs(there) >= found).sum(axis=0)
        n_taken += len(exchanged)
    own = 0 if is_exact(len(first)) else 1
    return (extreme + own) / (n_taken + own)


def is_exact(n_records: int) -> bool:
    """Whether all ways to exchange the sides of so many records are taken."""
    return n_records < N_DRAWS.bit_length()


def exchanges(n: int) -> Iterator[Array]:
    """Which of ``n`` records are exchanged, blocks [n_draws, n] of zeros and ones."""
    if is_exact(n):
        yield (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(np.float64)
        return
    rng = np.random.default_rng(SEED)
    for size in _blocks(N_DRAWS, n):
        yield rng.integers(2, size=(size, n), dtype=np.int8).astype(np.float64)


def holm(p: Array) -> Array:
    """p-values corrected for their number (Holm, 1979), whatever depends on what."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1)
    return corrected


def _blocks(n_draws: int, n_records: int) -> Iterator[int]:
    size = max(1, _BLOCK // n_records)
    for start in range(0, n_draws, size):
        yield min(size, n_draws - start)
