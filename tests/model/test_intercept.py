"""Steps into a module's forward: what they compute, and that nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from rome_fast.model.intercept import SLICE, answering, linear_in_slices, only_at, reading_only

ROWS, POSITIONS = torch.tensor([0, 0, 2]), torch.tensor([1, 3, 0])
FIRST = torch.ones(3, dtype=torch.bool)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Plus(nn.Module):
    """Not a Linear: what it is given, plus one."""

    def forward(self, x):
        return x + 1


def broken(*_):
    raise ZeroDivisionError


@pytest.mark.covering
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_out", [1, SLICE - 1, SLICE, SLICE + 1, 3 * SLICE + 5])
def test_linear_in_slices_is_linear(n_out, bias):
    x, weight = draw(2, 3, 8).requires_grad_(), draw(n_out, 8, seed=1)
    given = draw(n_out, seed=2) if bias else None
    out, expected = linear_in_slices(x, weight, given), linear(x, weight, given)
    torch.testing.assert_close(out, expected)
    along = draw(*expected.shape, seed=3)
    gradients = [torch.autograd.grad((y * along).sum(), x)[0] for y in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_reading_only_is_the_head_at_some_positions(dtype, bias):
    head, hidden = nn.Linear(8, 2 * SLICE + 3, bias=bias).to(dtype), draw(3, 4, 8).to(dtype)
    whole = head(hidden)
    with reading_only(head, ROWS, POSITIONS):
        read = head(hidden)
    assert read.shape == (1, 3, 2 * SLICE + 3)
    torch.testing.assert_close(read[0], whole[ROWS, POSITIONS])
    assert torch.equal(head(hidden), whole)


def test_reading_only_runs_the_forward_that_a_head_was_given():
    """As accelerate gives one; what it does beyond the product must stay."""
    head, hidden = nn.Linear(8, 5), draw(3, 4, 8)

    def own(x):
        return 7 * linear(x, head.weight, head.bias)

    head.forward = own
    with reading_only(head, ROWS, POSITIONS):
        read = head(hidden)
    torch.testing.assert_close(read[0], own(hidden)[ROWS, POSITIONS])
    assert vars(head)["forward"] is own


def test_reading_only_runs_a_subclass_of_linear_as_it_is():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    head, hidden = Doubled(8, 5), draw(3, 4, 8)
    whole = head(hidden)
    with reading_only(head, ROWS, POSITIONS):
        torch.testing.assert_close(head(hidden)[0], whole[ROWS, POSITIONS])


def test_only_at_runs_some_positions_and_gives_zeros_elsewhere():
    module, x = nn.Sequential(nn.Linear(8, 6), nn.GELU()), draw(3, 4, 8)
    whole, seen = module(x), []
    module[0].register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    with only_at(module, ROWS, POSITIONS, FIRST):
        some = module(x)
    assert seen == [(1, 3, 8)] and some.shape == whole.shape
    torch.testing.assert_close(some[ROWS, POSITIONS], whole[ROWS, POSITIONS])
    elsewhere = torch.ones(3, 4, dtype=torch.bool)
    elsewhere[ROWS, POSITIONS] = False
    assert whole[elsewhere].any() and not some[elsewhere].any()
    assert torch.equal(module(x), whole)


def test_only_at_cuts_every_tensor_and_passes_the_gradient():
    class Gate(nn.Module):
        def forward(self, x, residual, scale=1.0):
            return scale * x.sin() + residual

    module, residual = Gate(), draw(3, 4, 8, seed=1)
    x = draw(3, 4, 8).requires_grad_()
    with only_at(module, ROWS, POSITIONS, FIRST):
        some = module(x, residual, scale=2.0)
    (gradient,) = torch.autograd.grad(some.sum(), x)
    expected = torch.zeros(3, 4, 8)
    expected[ROWS, POSITIONS] = 2 * x.detach().cos()[ROWS, POSITIONS]
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(
        some.detach()[ROWS, POSITIONS], (2 * x.detach().sin() + residual)[ROWS, POSITIONS]
    )


def test_only_at_a_position_that_is_named_twice_has_one_gradient():
    module, x = nn.Sequential(nn.Linear(8, 6), nn.GELU()), draw(3, 4, 8).requires_grad_()
    rows, positions = (torch.cat([at, at[-1:]]) for at in (ROWS, POSITIONS))
    along, found = draw(3, 4, 6, seed=1), []
    for at in (ROWS, POSITIONS, FIRST), (rows, positions, torch.tensor([*FIRST.tolist(), False])):
        with only_at(module, *at):
            some = module(x)
        found.append((some, *torch.autograd.grad((some * along).sum(), x)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


STEPS = {
    "answering": lambda module: answering(module, 1),
    "reading_only": lambda module: reading_only(module, ROWS, POSITIONS),
    "only_at": lambda module: only_at(module, ROWS, POSITIONS, FIRST),
}


@pytest.mark.parametrize("step", STEPS)
def test_the_forward_is_back_after_an_exception(step):
    module, hidden = Plus(), draw(3, 4, 8)
    with pytest.raises(ZeroDivisionError), STEPS[step](module):
        assert "forward" in vars(module)
        broken()
    assert "forward" not in vars(module)
    assert torch.equal(module(hidden), hidden + 1)


@pytest.mark.parametrize("step", STEPS)
def test_a_forward_set_on_the_instance_is_back_too(step):
    module, hidden = Plus(), draw(3, 4, 8)
    module.forward = own = lambda x: x + 2
    with pytest.raises(ZeroDivisionError), STEPS[step](module):
        assert vars(module)["forward"] is not own
        broken()
    assert vars(module)["forward"] is own
    assert torch.equal(module(hidden), hidden + 2)


@pytest.mark.parametrize("step", ["reading_only", "only_at"])
def test_an_exception_in_the_forward_itself_comes_out(step):
    module = Plus()
    module.forward = broken
    with pytest.raises(ZeroDivisionError), STEPS[step](module):
        module(draw(3, 4, 8))
    assert vars(module)["forward"] is broken
