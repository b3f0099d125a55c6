"""value_step_ against torch.optim.Adam, edit by edit, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from rome_fast import ops
from rome_fast.errors import InvalidArgumentError
from rome_fast.testing import CanaryBuffer

N_EDITS, D_VALUE, MAX_STEPS = 3, 13, 6
SETTINGS = {"lr": 0.3, "stop_loss": 0.05, "mean_loss_suffices": False}


def state(dtype=torch.float64):
    """What a search begins with, by name."""
    zeros = torch.zeros(N_EDITS, D_VALUE, dtype=dtype)
    return {
        "deltas": zeros.clone(),
        "mean": zeros.clone(),
        "square": zeros.clone(),
        "n_steps": torch.zeros((), dtype=torch.int64),
        "history": torch.full((MAX_STEPS, N_EDITS), float("nan"), dtype=dtype),
        "active": torch.ones(N_EDITS, dtype=torch.bool),
    }


def drawn(generator, dtype=torch.float64):
    """A step's gradients, losses and who is right."""
    gradients = torch.randn(N_EDITS, D_VALUE, generator=generator, dtype=torch.float64)
    losses = 1 + torch.rand(N_EDITS, generator=generator, dtype=torch.float64)
    return gradients.to(dtype), losses.to(dtype), torch.ones(N_EDITS, dtype=torch.bool)


def balls(dtype=torch.float64):
    """Radii, of which the middle one is soon reached, and decays."""
    return torch.tensor([9.0, 0.8, 9.0]).to(dtype), torch.tensor([0.0, 0.1, 0.2]).to(dtype)


def step(now, given, limits, backend, **settings):
    ops.value_step_(*now.values(), *given, *limits, backend=backend, **(SETTINGS | settings))


def reference(all_gradients, radius, decay):
    """One edit's offset after each step, by torch's own Adam."""
    delta = torch.zeros(D_VALUE, dtype=torch.float64, requires_grad=True)
    optimizer, found = torch.optim.Adam([delta], lr=SETTINGS["lr"]), []
    for gradient in all_gradients:
        norm = delta.detach().norm()
        delta.grad = gradient + decay * (delta.detach() / norm if norm else 0)
        optimizer.step()
        with torch.no_grad():
            delta.mul_((radius / delta.norm()).clamp(max=1))
        found.append(delta.detach().clone())
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_step_is_adam_in_a_ball(backend, dtype):
    generator = torch.Generator().manual_seed(0)
    now, limits = state(dtype), balls(dtype)
    steps = [drawn(generator, dtype) for _ in range(MAX_STEPS - 1)]
    seen = []
    for i, given in enumerate(steps):
        norms = now["deltas"].norm(dim=1)
        step(now, given, limits, backend)
        seen.append(now["deltas"].clone())
        torch.testing.assert_close(now["history"][i], given[1] + limits[1] * norms)
        assert int(now["n_steps"]) == i + 1
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for i in range(N_EDITS):
        gradients = [given[0][i].double() for given in steps]
        expected = reference(gradients, float(limits[0][i]), float(limits[1][i]))
        for a, b in zip(seen, expected, strict=True):
            torch.testing.assert_close(a[i].double(), b, rtol=tolerance, atol=tolerance)
    assert seen[-1][1].norm() == pytest.approx(0.8), "the ball was reached"
    assert now["history"][-1].isnan().all() and now["active"].all()


@pytest.mark.parametrize("suffices", [True, False])
def test_value_step_ends_what_is_found_and_leaves_it_alone(backend, suffices):
    generator = torch.Generator().manual_seed(1)
    now, limits = state(), balls()
    step(now, drawn(generator), limits, backend)
    before = {name: tensor.clone() for name, tensor in now.items()}
    gradients, losses, right = drawn(generator)
    losses[0], losses[2], right[2] = 0.01, 0.0, False  # with its decay, the last is above 0.05
    step(now, (gradients, losses, right), limits, backend, mean_loss_suffices=suffices)
    assert now["active"].tolist() == [False, True, True]
    limits[1][2] = 0
    step(now, (gradients, losses, right), limits, backend, mean_loss_suffices=suffices)
    assert now["active"].tolist() == [False, True, not suffices]
    for name in ("deltas", "mean", "square"):
        assert torch.equal(now[name][0], before[name][0])
        assert not torch.equal(now[name][1], before[name][1])
    assert now["history"][1, 0] == 0.01 + limits[1][0] and now["history"][2:, 0].isnan().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_value_step_ends_what_is_not_finite(backend, bad):
    generator = torch.Generator().manual_seed(2)
    now, limits = state(), balls()
    gradients, losses, right = drawn(generator)
    losses[1], gradients[1] = bad, bad
    step(now, (gradients, losses, right), limits, backend)
    assert now["active"].tolist() == [True, False, True]
    assert not now["deltas"][1].any() and now["deltas"].isfinite().all()
    assert now["history"][0, 1].isnan() == torch.tensor(bad).isnan()


def test_value_step_ends_at_the_last_and_then_changes_nothing(backend):
    """A captured step may be replayed some times too often."""
    generator = torch.Generator().manual_seed(3)
    now, limits = state(), balls()
    for _ in range(MAX_STEPS):
        before = {name: tensor.clone() for name, tensor in now.items()}
        step(now, drawn(generator), limits, backend)
    assert not now["active"].any() and now["history"].isfinite().all()
    assert torch.equal(now["deltas"], before["deltas"]), "there is one update fewer than losses"
    after = {name: tensor.clone() for name, tensor in now.items() if name != "n_steps"}
    for _ in range(3):
        step(now, drawn(generator), limits, backend)
    assert all(torch.equal(now[name], tensor) for name, tensor in after.items())


@pytest.mark.covering("name,backend", "transposed")
@pytest.mark.parametrize("name", ["deltas", "mean", "square", "history"])
@pytest.mark.parametrize("transposed", [False, True])
def test_value_step_honours_strides(backend, name, transposed):
    generator = torch.Generator().manual_seed(4)
    plain, limits, given = state(), balls(), drawn(generator)
    strided = state()
    buffer = CanaryBuffer(strided[name], transposed)
    strided[name] = buffer.view
    for now in (plain, strided):
        step(now, given, limits, backend)
    buffer.assert_intact()
    for key, tensor in plain.items():
        torch.testing.assert_close(strided[key], tensor, equal_nan=True)


def test_value_step_is_registered_right():
    generator = torch.Generator().manual_seed(5)
    args = (*state().values(), *drawn(generator), *balls(), *SETTINGS.values())
    torch.library.opcheck(torch.ops.rome_fast.value_step_.default, args)


@pytest.mark.covering
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("deltas", torch.zeros(N_EDITS, D_VALUE).half(), "deltas must be one of"),
        ("mean", torch.zeros(N_EDITS, D_VALUE), "mean must be torch.float64 as deltas are"),
        ("square", torch.zeros(1, D_VALUE).double(), "square must have shape"),
        ("n_steps", torch.zeros(1).long(), "n_steps must have shape"),
        ("history", torch.zeros(MAX_STEPS, 2).double(), "history must have shape"),
        ("active", torch.ones(N_EDITS), "active must be one of bool"),
        ("mean", torch.zeros(1, D_VALUE).double().expand(3, -1), "mean is expanded"),
    ],
)
def test_value_step_refuses(backend, name, value, message):
    now, generator = state(), torch.Generator().manual_seed(6)
    before = {key: tensor.clone() for key, tensor in now.items()}
    with pytest.raises(InvalidArgumentError, match=message):
        step(now | {name: value}, drawn(generator), balls(), backend)
    with pytest.raises(InvalidArgumentError, match="lr must be finite"):
        step(now, drawn(generator), balls(), backend, lr=float("inf"))
    for key, tensor in before.items():
        torch.testing.assert_close(now[key], tensor, rtol=0, atol=0, equal_nan=True)
