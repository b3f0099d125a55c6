"""Directions against the problem that they solve, in float64 on random data."""

from __future__ import annotations

import pytest
import torch

from rome_fast import SecondMoment
from rome_fast.beside.directions import (
    OTHER_COMPANY,
    OTHER_SUBJECTS,
    SPREAD,
    direction_apart,
    directions,
)
from rome_fast.beside.entry import Entry
from rome_fast.beside.threshold import Threshold
from rome_fast.errors import SecondMomentError

D, N = 12, 400


def drawn(seed, n=N):
    """Tokens around a mean, whose directions are not equally common."""
    generator = torch.Generator().manual_seed(seed)
    shape = torch.linspace(0.2, 2.0, D, dtype=torch.float64)
    h = torch.randn(n, D, generator=generator, dtype=torch.float64) * shape
    return h + torch.arange(D, dtype=torch.float64) / 4


def entry_of(h):
    moment = SecondMoment(D + 1)
    moment.add(torch.cat([h, h.new_ones(len(h), 1)], 1))
    return Entry.of(moment, h[:50])


def mean_square(h, w):
    return float(((h @ w) ** 2).mean())


def away_from(mean, seed):
    """A random step that leaves the response to the mean as it is."""
    step = torch.randn(D, generator=torch.Generator().manual_seed(seed)).double()
    return 1e-3 * (step - (step @ mean) / (mean @ mean) * mean)


def test_the_constant_is_the_least_squares_one():
    h = drawn(0)
    expected = torch.linalg.lstsq(h, torch.ones(len(h), 1, dtype=h.dtype)).solution[:, 0]
    torch.testing.assert_close(entry_of(h).constant.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_direction_responds_least_of_all_that_answer_to_the_subject():
    h, own = drawn(1), [drawn(seed, 4) for seed in (2, 3, 4)]
    means = torch.stack([rows.mean(0) for rows in own])
    found = directions(entry_of(h), own, ~torch.eye(3, dtype=torch.bool))
    torch.testing.assert_close((found * means).sum(-1), torch.ones(3, dtype=h.dtype))
    for w, rows, mean in zip(found, own, means, strict=True):

        def cost(w, rows=rows, mean=mean):
            others = OTHER_SUBJECTS * mean_square(means, w)
            return mean_square(h, w) + others + SPREAD * mean_square(rows - mean, w)

        for seed in range(20):
            assert cost(w + away_from(mean, seed)) > cost(w)


def test_two_names_of_one_edit_are_not_told_apart():
    """As if the other name were not there, at the weight that the others have."""
    h, own = drawn(1), [drawn(seed, 4) for seed in (2, 3, 4)]
    apart = ~torch.eye(3, dtype=torch.bool)
    apart[0, 1] = apart[1, 0] = False
    means = torch.stack([rows.mean(0) for rows in own])
    w, mean = directions(entry_of(h), own, apart)[0], means[0]

    def cost(w):
        others = OTHER_SUBJECTS * mean_square(means[[0, 2]], w) * 2 / 3
        return mean_square(h, w) + others + SPREAD * mean_square(own[0] - mean, w)

    for seed in range(20):
        assert cost(w + away_from(mean, seed)) > cost(w)


def test_the_direction_apart_is_quiet_in_other_company():
    h, own, company = drawn(1), drawn(2, 4), drawn(3, 5)
    p, mean = direction_apart(entry_of(h), own, company), own.mean(0)
    assert float(p @ mean) == pytest.approx(1)

    def cost(w):
        near = SPREAD * mean_square(own - mean, w)
        return mean_square(h, w) + near + OTHER_COMPANY * mean_square(company, w)

    for seed in range(20):
        assert cost(p + away_from(mean, seed)) > cost(p)
    assert float(direction_apart(entry_of(h), own, company[:0]) @ mean) == pytest.approx(1)


def test_they_are_the_same_in_another_order():
    own = [drawn(seed, 3) for seed in range(4)]
    entry, apart = entry_of(drawn(9)), ~torch.eye(4, dtype=torch.bool)
    forth, back = directions(entry, own, apart), directions(entry, own[::-1], apart)
    torch.testing.assert_close(forth, back.flip(0), rtol=1e-10, atol=1e-12)


def test_too_few_tokens_are_refused():
    with pytest.raises(
        SecondMomentError, match="11 tokens are too few for directions of d_model 12"
    ):
        entry_of(drawn(6, 11))


@pytest.mark.parametrize(
    ("others", "at", "slope"),
    [([0.1, -3.0, 0.3], 0.65, 9 / 0.35), ([-2.0], 0.5, 18.0), ([0.9], 0.8, 48.0), ([], 0.5, 18.0)],
)
def test_a_threshold_lies_between_and_is_as_steep_as_it_must_be(others, at, slope):
    found = Threshold.above(torch.tensor(others), share=0.5)
    assert (found.at, found.slope) == (pytest.approx(at), pytest.approx(slope))


def test_a_threshold_can_lie_nearer_to_the_others():
    assert Threshold.above(torch.tensor([0.4]), share=0.35).at == pytest.approx(0.61)
