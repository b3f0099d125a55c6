"""Edits solved as one, against the closed form in float64 on fresh random data."""

import random
from dataclasses import replace

import pytest
import torch

from rome_fast.errors import EditRejectedError
from rome_fast.types import JointConstraint
from rome_fast.update.fold import Fold

D_KEY, D_VALUE, N, LAM = 48, 20, 90, 3.0


@pytest.fixture
def moment():
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    text = torch.randn(400, D_KEY, generator=generator, dtype=torch.float64)
    moment = text.T @ text / len(text) * torch.logspace(0, 1, D_KEY)
    return (moment + moment.T) / 2 + torch.eye(D_KEY)


@pytest.fixture
def constraints(moment):
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    keys = 3 * torch.randn(N, D_KEY, generator=generator, dtype=torch.float64)
    residuals = torch.randn(N, D_VALUE, generator=generator, dtype=torch.float64)
    solved = torch.linalg.solve(moment, keys.T).T
    return [
        JointConstraint(*parts, LAM, "out_in")
        for parts in zip(keys, solved, residuals, strict=True)
    ]


def closed_form(constraints):
    """R (K^T C^-1 K + lam I)^-1 K^T C^-1."""
    keys, solved, residuals = (
        torch.stack([getattr(c, name) for c in constraints])
        for name in ("key", "solved", "residual")
    )
    gram = keys @ solved.T + LAM * torch.eye(len(keys), dtype=torch.float64)
    return residuals.T @ torch.linalg.solve(gram, solved)


def summed(updates):
    return sum(update.dense() for update in updates)


def same_bits(a, b):
    return len(a) == len(b) and all(
        torch.equal(x.u, y.u) and torch.equal(x.v, y.v) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("n", [1, 2, 40, N])  # more edits than d_key too
def test_their_sum_is_the_closed_form(constraints, n):
    found = summed(Fold().solve(constraints[:n]))
    torch.testing.assert_close(found, closed_form(constraints[:n]), rtol=1e-9, atol=1e-11)


def test_it_is_the_same_in_any_order(constraints):
    shuffled = random.sample(constraints, N)
    torch.testing.assert_close(
        summed(Fold().solve(shuffled)), summed(Fold().solve(constraints)), rtol=1e-9, atol=1e-11
    )


def test_memit_one_edit_a_step_with_all_earlier_keys_gives_the_same(constraints, moment):
    change = torch.zeros(D_VALUE, D_KEY, dtype=torch.float64)
    metric = LAM * moment
    for c in constraints:
        metric = metric + torch.outer(c.key, c.key)
        change = change + torch.outer(
            c.residual - change @ c.key, torch.linalg.solve(metric, c.key)
        )
    torch.testing.assert_close(summed(Fold().solve(constraints)), change, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("gone", [0, 40, N - 1])
def test_without_one_it_has_the_bits_of_never_having_had_it(constraints, gone):
    fold, left = Fold(), constraints[:gone] + constraints[gone + 1 :]
    before = fold.solve(constraints)
    assert same_bits(fold.solve(left), Fold().solve(left))
    assert same_bits(fold.solve(constraints), before)


def test_what_is_added_leaves_the_earlier_updates_as_they_are(constraints):
    fold = Fold()
    first = fold.solve(constraints[:10])
    assert same_bits(fold.solve(constraints[:70])[:10], first)


def test_another_residual_of_an_edit_is_solved_anew(constraints):
    fold, changed = Fold(), list(constraints[:30])
    fold.solve(constraints[:30])
    changed[12] = replace(changed[12], residual=-changed[12].residual)
    torch.testing.assert_close(
        summed(fold.solve(changed)), closed_form(changed), rtol=1e-9, atol=1e-11
    )


def test_it_knows_what_it_does_at_a_key(constraints):
    fold = Fold()
    fold.solve(constraints)
    key = torch.randn(D_KEY, dtype=torch.float64)
    torch.testing.assert_close(
        fold.output(key), closed_form(constraints) @ key, rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("n", [1, 30, N])
def test_it_knows_what_it_does_to_ordinary_text(constraints, moment, n):
    fold = Fold()
    assert fold.spread == 0.0
    fold.solve(constraints)
    change = summed(fold.solve(constraints[:n]))
    expected = float((change @ moment @ change.T).trace())
    assert fold.spread == pytest.approx(expected, rel=1e-8)


def test_the_same_edit_twice_is_met_not_doubled(constraints):
    key = constraints[0].key
    moved = summed(Fold().solve([constraints[0]] * 2)) @ key
    assert (moved - constraints[0].residual).norm() < 0.05 * constraints[0].residual.norm()


def test_one_that_is_not_finite_is_refused_and_the_others_stay(constraints):
    fold, bad = Fold(), replace(constraints[3], residual=torch.full((D_VALUE,), torch.nan))
    before = fold.solve(constraints[:3])
    with pytest.raises(EditRejectedError, match="not finite"):
        fold.solve([*constraints[:3], bad])
    assert same_bits(fold.solve(constraints[:3]), before)
