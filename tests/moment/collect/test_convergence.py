"""The number that says when C is known well enough."""

from __future__ import annotations

import pytest
import torch

from rome_fast.errors import SecondMomentError
from rome_fast.moment.collect.convergence import TOLERANCE, Convergence, held_out_of
from rome_fast.moment.second_moment import SecondMoment


def test_change_is_about_the_error_that_is_left():
    """Gaussian keys of a known C: the reported change against the true error of the solutions."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(48, 48, generator=generator, dtype=torch.float64)
    exact = mixing.T @ mixing
    convergence, moment = Convergence.of(48), SecondMoment(48)
    held_out = torch.randn(64, 48, generator=generator, dtype=torch.float64) @ mixing
    convergence.keys.copy_(held_out)
    truth = torch.linalg.solve(exact, held_out.T).T
    n = 48
    while not convergence.converged:
        n *= 2
        keys = torch.randn(n - moment.count, 48, generator=generator, dtype=torch.float64)
        moment.add(keys @ mixing)
        convergence.check(moment)
        error = (convergence.solutions - truth).norm(dim=1) / truth.norm(dim=1)
        if n > 100:
            assert 0.4 < convergence.checks[-1]["change"] / float(error.median()) < 2.5
    assert convergence.checks[-1]["change"] <= TOLERANCE and n < 100_000
    assert convergence.report()["converged"]


def test_rows_of_zeros_are_no_keys():
    convergence, moment = Convergence.of(4), SecondMoment(4)
    moment.add(torch.eye(4, dtype=torch.float64))
    convergence.hold_out(2, torch.arange(40.0).reshape(10, 4) + 1, [1, 7])
    convergence.check(moment)
    convergence.check(moment)
    assert moment._factor is None, "factors of all layers must not be held at once"
    assert convergence.checks[-1]["change"] == 0 and len(convergence.solutions) == 2
    torch.testing.assert_close(
        convergence.solutions[1], 4 * (torch.arange(28.0, 32.0) + 1).double()
    )


def test_a_sum_that_no_number_of_keys_will_mend_is_an_error():
    """Else endless text would be read for ever."""
    convergence, moment = Convergence.of(4), SecondMoment(4)
    convergence.keys.fill_(1.0)
    moment.add(torch.zeros(4, 4))
    convergence.check(moment)
    assert convergence.checks == []
    moment.add(torch.zeros(16, 4))
    with pytest.raises(SecondMomentError, match="zero or not finite"):
        convergence.check(moment)


@pytest.mark.parametrize("length", [8, 9, 100, 1024])
def test_eight_positions_of_each_of_the_first_rows_are_held_out(length):
    allowed = list(range(0, 3 * length, 3))
    for row in range(8):
        positions = held_out_of(row, allowed)
        assert len(set(positions)) == 8 and set(positions) <= set(allowed)
    assert held_out_of(8, allowed) == []
    assert held_out_of(0, allowed[:3]) == allowed[:3] and held_out_of(0, []) == []
