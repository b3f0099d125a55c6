"""Intervals and p-values against loops over everything, and against how often they are wrong."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rome_fast.evaluate import paired
from rome_fast.evaluate.differences import differences
from rome_fast.evaluate.paired import N_DRAWS, holm, intervals, p_values

NAMES = ("ES", "PS", "NS", "near")


def means(sums, counts):
    return sums / counts


def rows_of(rng, n, shift=0.0):
    """Shares of a few prompts each; one in four records lacks its last value."""
    table = np.clip(rng.integers(0, 5, size=(n, len(NAMES))) / 4 + shift, 0, 1)
    rows = [dict(zip(NAMES, map(float, row), strict=True)) for row in table]
    for i in range(0, n, 4):
        del rows[i]["near"]
    return rows


def mean(rows, name):
    found = [row[name] for row in rows if name in row]
    return sum(found) / len(found)


def figure(rows, name):
    """A mean, or the harmonic mean of three, in the plainest way."""
    if name != "S":
        return mean(rows, name)
    parts = [mean(rows, part) for part in ("ES", "PS", "NS")]
    return 0.0 if 0 in parts else 3 / sum(1 / x for x in parts)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_p_values_are_those_of_all_exchanges(n):
    rng = np.random.default_rng(n)
    first, second = rows_of(rng, n), rows_of(rng, n, 0.25)
    if n > 1:
        second[1].pop("near", None)
    found = {row.name: row for row in differences(first, second)}
    both = [(a, b) for a, b in zip(first, second, strict=True)]
    for a, b in both:  # a value is compared where both have it
        for row, other in ((a, b), (b, a)):
            if "near" not in other:
                row.pop("near", None)
    assert set(found) == {name for a, _ in both for name in a} | {"S"}
    for name, row in found.items():
        sides = [[pair[i] for pair in both] for i in (0, 1)]
        wanted = figure(sides[1], name) - figure(sides[0], name)
        extreme = 0
        for flips in itertools.product((0, 1), repeat=n):
            moved = [
                [pair[i ^ flip] for pair, flip in zip(both, flips, strict=True)] for i in (0, 1)
            ]
            extreme += abs(figure(moved[1], name) - figure(moved[0], name)) >= abs(wanted) - 1e-9
        assert row.difference.mean == pytest.approx(wanted), name
        assert row.p == pytest.approx(extreme / 2**n), name
        assert (row.first, row.second) == pytest.approx([figure(side, name) for side in sides])


def test_drawn_exchanges_come_close_to_all_of_them(monkeypatch):
    rng = np.random.default_rng(1)
    first = rng.random((12, 3))
    second = first + rng.normal([0, 0.1, 0.3], 0.3, size=(12, 3))
    exact = p_values(first, second, means)
    monkeypatch.setattr(paired, "is_exact", lambda n: False)
    drawn = p_values(first, second, means)
    error = 5 * np.sqrt(exact * (1 - exact) / N_DRAWS) + 2 / N_DRAWS
    assert (abs(drawn - exact) < error).all() and (drawn != exact).any()
    assert (p_values(first, second, means) == drawn).all()  # the seed is fixed


def test_intervals_are_those_of_a_loop_over_samples_of_records():
    rng = np.random.default_rng(2)
    first, second = rng.random((40, 2)), rng.random((40, 2)) + 0.2
    first[::5, 1] = second[::5, 1] = math.nan
    low, high = intervals(first, second, means)
    again = np.random.default_rng(3)
    found = []
    for _ in range(4000):
        drawn = again.integers(40, size=40)
        found.append(np.nanmean(second[drawn], axis=0) - np.nanmean(first[drawn], axis=0))
    wanted = np.percentile(found, [2.5, 97.5], axis=0)
    width = wanted[1] - wanted[0]
    assert (abs(low - wanted[0]) < 0.06 * width).all()
    assert (abs(high - wanted[1]) < 0.06 * width).all()
    assert [x.tolist() for x in intervals(first, second, means)] == [low.tolist(), high.tolist()]


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(4)
    first, second = rng.random((50, 2)), rng.random((50, 2))
    whole = p_values(first, second, means)
    monkeypatch.setattr(paired, "_BLOCK", 50 * 7)
    assert p_values(first, second, means) == pytest.approx(whole, abs=0.05)


def test_equal_evaluations_differ_in_nothing():
    rows = rows_of(np.random.default_rng(5), 30)
    for row in differences(rows, rows):
        d = row.difference
        assert (d.mean, d.low, d.high, row.p, row.corrected) == (0, 0, 0, 1, 1)


def test_prompts_of_a_record_are_no_records():
    """Ten prompts that agree within their record are as sure as one of them."""
    rng = np.random.default_rng(6)
    one = rng.integers(0, 2, size=12)
    [row] = differences([{"NS": 0.5}] * 12, [{"NS": float(x)} for x in one])
    assert row.difference.n == 12 and row.p > 0.05
    assert row.difference.high - row.difference.low > 0.3


def test_holm_by_hand():
    # 0.01 * 4; 0.02 * 3; 0.03 * 2, which is no less than the one before it; 0.5 * 1.
    found = holm(np.array([0.03, 0.5, 0.01, 0.02]))
    assert found == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1, 1])


@pytest.mark.exhaustive
def test_no_more_is_found_than_chance_allows():
    """1,000 pairs of evaluations that differ by chance only: p, and p by Holm over four metrics.

    The values are shares of few prompts, of records that are easy or hard, so that sides, metrics
    and prompts are as dependent as they are.
    """
    rng = np.random.default_rng(7)
    n_trials, small, any_small, covered = 1000, 0, 0, 0
    for _ in range(n_trials):
        ease = rng.beta(1, 1, size=(60, 1))
        a, b = (rng.binomial(10, ease, size=(60, 4)) / 10 for _ in range(2))
        p, (low, high) = p_values(a, b, means), intervals(a[:, :1], b[:, :1], means)
        small += int(p[0] <= 0.05)
        any_small += int(holm(p).min() <= 0.05)
        covered += int(low[0] <= 0 <= high[0])
    spread = 3 * math.sqrt(0.05 * 0.95 / n_trials)
    assert abs(small / n_trials - 0.05) < spread
    assert any_small / n_trials < 0.05 + spread
    assert abs(covered / n_trials - 0.95) < spread + 0.01
