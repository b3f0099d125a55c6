"""L-BFGS in a ball: against a plain one of a request at a time, and what it promises."""

from __future__ import annotations

import math

import pytest
import torch

from rome_fast.hparams import RomeHparams
from rome_fast.value.lbfgs import LEAST_CURVATURE, LONGER, LONGEST, MEMORY, SHORTER, Lbfgs
from rome_fast.value.offsets import NO_LOSS

N_EDITS, D_VALUE, N_ROWS, MAX_STEPS = 3, 11, 5, 14


class Problems:
    """Mean softplus losses of a few rows: nearly what the search for v* minimises."""

    def __init__(self, seed):
        drawn = torch.Generator().manual_seed(seed)
        self.rows = torch.randn(N_EDITS, N_ROWS, D_VALUE, generator=drawn, dtype=torch.float64)
        self.bias = 3 * torch.rand(N_EDITS, N_ROWS, generator=drawn, dtype=torch.float64)
        self.init = torch.randn(N_EDITS, D_VALUE, generator=drawn, dtype=torch.float64)

    def at(self, deltas, edits=range(N_EDITS)):
        """Losses and gradients, without the decay's."""
        edits, x = list(edits), deltas.detach().clone().requires_grad_()
        odds = torch.einsum("erd,ed->er", self.rows[edits], x) - self.bias[edits]
        bent = odds + 0.1 * (x**3).sum(1, keepdim=True)
        losses = torch.nn.functional.softplus(-bent).mean(1)
        (gradients,) = torch.autograd.grad(losses.sum(), [x])
        return losses.detach(), gradients


def settings(**changes):
    chosen = {"v_num_grad_steps": MAX_STEPS, "v_stop_loss": 0.0, "v_weight_decay": 0.05}
    return RomeHparams(layers=(0,), v_lr=0.3, **{**chosen, **changes})


def run(problems, offsets, n_steps=MAX_STEPS, right=True):
    """All points that were asked for."""
    seen = []
    for _ in range(n_steps):
        seen.append(offsets.deltas.detach().clone())
        losses, gradients = problems.at(offsets.deltas)
        offsets.step(gradients, losses, torch.full((len(losses),), right))
    return seen


def one_by_one(problems, edit, hparams):
    """The same in plain steps on the host, for one request."""
    norm = float(problems.init[edit].norm())
    radius, decay = hparams.clamp_norm_factor * norm, hparams.v_weight_decay / norm**2
    trust = min(hparams.v_lr * D_VALUE**0.5, LONGEST * radius)
    x, best, pairs, seen = torch.zeros(D_VALUE, dtype=torch.float64), None, [], []
    for _ in range(MAX_STEPS):
        seen.append(x)
        losses, gradients = problems.at(x[None], [edit])
        size = float(x.norm())
        loss = float(losses[0]) + decay * size
        gradient = gradients[0] + decay * x / max(size, 1e-12)
        if best is None:
            best = (x, gradient, loss)
        else:
            moved = x - best[0]
            pairs = remembered(pairs, moved, gradient - best[1])
            if loss < best[2]:
                trust = min(max(trust, LONGER * float(moved.norm())), LONGEST * radius)
                best = (x, gradient, loss)
            else:
                trust = SHORTER * float(moved.norm())
        x = next_point(best, pairs, trust, radius)
    return seen


def remembered(pairs, s, y):
    scale = float(y.norm() / s.norm())
    if pairs:
        s_last, y_last = pairs[-1]
        scale = float(y_last @ y_last / (s_last @ y_last))
    least = scale * float(s @ s)
    if float(s @ y) < LEAST_CURVATURE * least:
        mix = (1 - LEAST_CURVATURE) * least / (least - float(s @ y))
        y = mix * y + (1 - mix) * scale * s
    return [*pairs, (s, y)][-MEMORY:]


def next_point(best, pairs, trust, radius):
    x, gradient, _ = best

    def tangential(direction):
        outward = float(direction @ x)
        if x.norm() < 0.999 * radius or outward <= 0:
            return direction
        return direction - outward / float(x @ x) * x

    gradient = -tangential(-gradient)
    # The inverse of BFGS, built from the pairs as a matrix.
    identity = torch.eye(D_VALUE, dtype=torch.float64)
    inverse = identity
    if pairs:
        s, y = pairs[-1]
        inverse = identity * (s @ y) / (y @ y)
    for s, y in pairs:
        left = identity - torch.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + torch.outer(s, s) / (s @ y)
    direction = tangential(-inverse @ gradient)
    if direction @ gradient >= 0:
        direction = -gradient
    length = float(direction.norm())
    step = direction * ((min(length, trust) if pairs else trust) / length)
    moved = x + step
    return moved * min(1.0, radius / float(moved.norm()))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clamp", [0.3, 4.0])
def test_a_batch_steps_as_each_request_alone(seed, clamp):
    problems, hparams = Problems(seed), settings(clamp_norm_factor=clamp)
    seen = run(problems, Lbfgs(problems.init, hparams, "torch"))
    for edit in range(N_EDITS):
        for found, expected in zip(seen, one_by_one(problems, edit, hparams), strict=True):
            torch.testing.assert_close(found[edit], expected, rtol=1e-6, atol=1e-8)


def test_no_point_leaves_its_ball_and_the_best_one_is_the_result():
    problems, hparams = Problems(9), settings(clamp_norm_factor=0.5)
    offsets = Lbfgs(problems.init, hparams, "torch")
    seen = run(problems, offsets)
    radii = 0.5 * problems.init.norm(dim=1)
    assert all((points.norm(dim=1) <= radii * (1 + 1e-9)).all() for points in seen)
    losses = torch.stack([problems.at(points)[0] for points in seen])
    decays = 0.05 / problems.init.norm(dim=1) ** 2
    totals = losses + decays * torch.stack([points.norm(dim=1) for points in seen])
    torch.testing.assert_close(offsets.history, totals.cummin(0).values)
    for edit, step in enumerate(totals.argmin(0).tolist()):
        torch.testing.assert_close(offsets.deltas.detach()[edit], seen[step][edit])
    assert not offsets.active.any()


def test_what_is_found_stops_where_it_is():
    problems, hparams = Problems(2), settings(v_stop_loss=0.4)
    offsets = Lbfgs(problems.init, hparams, "torch")
    seen = run(problems, offsets)
    for edit, column in enumerate(offsets.history.T.tolist()):
        steps = [loss for loss in column if loss != NO_LOSS]
        assert len(steps) < MAX_STEPS
        assert steps[-1] < 0.4 <= min(steps[:-1])
        torch.testing.assert_close(offsets.deltas.detach()[edit], seen[len(steps) - 1][edit])


def test_a_low_loss_is_not_enough_without_the_target():
    problems, hparams = Problems(2), settings(v_stop_loss=0.4)
    offsets = Lbfgs(problems.init, hparams, "torch")
    run(problems, offsets, right=False)
    assert math.isfinite(float(offsets.history.min()))


def test_requests_that_go_on_are_as_if_alone():
    problems, hparams = Problems(5), settings()
    alone = run(problems, Lbfgs(problems.init, hparams, "torch"))
    offsets = Lbfgs(problems.init, hparams, "torch")
    run(problems, offsets, 6)
    offsets.keep([2, 0])
    for step in range(6, MAX_STEPS):
        torch.testing.assert_close(offsets.deltas.detach(), alone[step][[2, 0]])
        losses, gradients = problems.at(offsets.deltas, [2, 0])
        offsets.step(gradients, losses, torch.ones(2, dtype=torch.bool))
