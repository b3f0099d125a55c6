"""Directions against the problem that they solve, in float64 on random data."""

from __future__ import annotations

import pytest
import torch

from rome_fast import SecondMoment
from rome_fast.errors import EditRejectedError, SecondMomentError
from rome_fast.neuron.directions import AGAINST_EDITS, Entry, directions
from rome_fast.neuron.threshold import Threshold

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
    return Entry.of(moment)


def test_the_constant_is_the_least_squares_one():
    h = drawn(0)
    expected = torch.linalg.lstsq(h, torch.ones(len(h), 1, dtype=h.dtype)).solution[:, 0]
    torch.testing.assert_close(entry_of(h).constant, expected, rtol=1e-9, atol=1e-12)


def test_a_direction_responds_least_of_all_that_answer_to_the_subject():
    h, means, against = drawn(1), drawn(2, 3), drawn(3, 5)
    found = directions(entry_of(h), means, against)
    torch.testing.assert_close((found * means).sum(-1), torch.ones(3, dtype=h.dtype))

    def cost(w):
        parts = ((h, 1.0), (means, AGAINST_EDITS), (against, AGAINST_EDITS))
        return sum(weight * float(((x @ w) ** 2).mean()) for x, weight in parts)

    for w, mean in zip(found, means, strict=True):
        for seed in range(20):
            away = torch.randn(D, generator=torch.Generator().manual_seed(seed)).double()
            away -= (away @ mean) / (mean @ mean) * mean  # still 1 on the subject
            assert cost(w + 1e-3 * away) > cost(w)


def test_they_are_the_same_whatever_is_edited_beside_in_another_order():
    h, means = drawn(4), drawn(5, 4)
    entry, nothing = entry_of(h), h[:0]
    forth, back = directions(entry, means, nothing), directions(entry, means.flip(0), nothing)
    torch.testing.assert_close(forth, back.flip(0), rtol=1e-12, atol=1e-12)


def test_too_few_tokens_are_refused():
    with pytest.raises(
        SecondMomentError, match="11 tokens are too few for directions of d_model 12"
    ):
        entry_of(drawn(6, 11))


def test_a_threshold_lies_half_way_and_is_as_steep_as_it_must_be():
    own, others = torch.tensor([1.1, 0.9, 1.0]), torch.tensor([0.1, -3.0, 0.3])
    found = Threshold.between(own, others, "Paris")
    assert (found.at, found.slope) == (pytest.approx(0.6), pytest.approx(30.0))
    scale = found.scale(torch.relu, own)
    assert scale == pytest.approx(30 * 0.4)
    # The others are silent: 9 below the threshold.
    assert float(torch.nn.functional.silu(found.slope * (others.max() - found.at))) > -2e-3


def test_what_cannot_be_told_apart_is_refused_with_the_way_out():
    with pytest.raises(
        EditRejectedError, match=r"'Paris' cannot be told apart.*edit the weight"
    ) as e:
        Threshold.between(torch.tensor([0.9, 1.0]), torch.tensor([0.8]), "Paris")
    assert e.value.numbers == {"own": pytest.approx(0.9), "others": pytest.approx(0.8)}
