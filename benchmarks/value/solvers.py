"""Ways to step towards v* on a ball, compared with Adam; `study.py` runs them.

A solver is told what it found at the point it asked for, and answers with the next point:
`step(Evaluation) -> delta [d]`. A shorter step from an earlier point is a step like any other, so
the number of calls is the number of passes through the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.value.problem import Ball, Evaluation

# The loss that a step aims at where it aims at one; below the 0.05 at which the search stops.
AIM = 0.02


def log_odds(loss: Tensor) -> Tensor:
    """Of the target, from its NLL: nearly linear in delta where the NLL itself saturates."""
    return -loss.clamp_min(1e-6).expm1().log()


class Adam:
    """torch.optim.Adam with projection."""

    def __init__(self, ball: Ball) -> None:
        self.ball = ball
        self.delta: Tensor | None = None

    def step(self, at: Evaluation) -> Tensor:
        if self.delta is None:
            self.delta = at.delta.clone().requires_grad_()
            self.optimizer = torch.optim.Adam([self.delta], lr=self.ball.lr)
        self.delta.grad = at.gradient
        self.optimizer.step()
        self.delta.data = self.ball.project(self.delta.data)
        return self.delta.detach().clone()


class Momentum:
    """A sum of gradients, tangential on the sphere, in steps of a decaying length.

    A step is never longer than the log odds, were they linear, need to reach the aim (Polyak).
    Without momentum and decay this is Polyak's method with a trust radius.
    """

    def __init__(
        self, ball: Ball, share: float = 0.7, keep: float = 0.5, shrink: float = 0.85
    ) -> None:
        self.ball, self.length, self.keep, self.shrink = ball, share * ball.radius, keep, shrink
        self.sum: Tensor | None = None

    def step(self, at: Evaluation) -> Tensor:
        gradient = self.ball.tangent(at.delta, at.gradient, float(-at.gradient @ at.delta))
        before = torch.zeros_like(gradient) if self.sum is None else self.sum
        before = self.ball.tangent(at.delta, before, float(-at.gradient @ at.delta))
        self.sum = self.keep * before + gradient
        direction = self.sum / self.sum.norm()
        loss = torch.tensor(at.loss)
        slope = float(gradient @ direction) / (1 - math.exp(-at.loss))
        gap = float(log_odds(torch.tensor(AIM)) - log_odds(loss))
        length = min(self.length, gap / slope) if slope > 0 and gap > 0 else self.length
        self.length *= self.shrink
        return self.ball.project(at.delta - length * direction)


class Lbfgs:
    """L-BFGS with Powell's damping in a trust radius; backtracks when the loss rises.

    ``memory`` 1 is the Barzilai-Borwein step with one secant correction.
    """

    def __init__(self, ball: Ball, memory: int = 10, share: float = 0.25) -> None:
        self.ball, self.memory, self.trust = ball, memory, share * ball.radius
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.best: Evaluation | None = None

    def step(self, at: Evaluation) -> Tensor:
        if self.best is None:
            self.best = at
        else:
            moved = at.delta - self.best.delta
            self.remember(moved, at.gradient - self.best.gradient)
            if at.loss < self.best.loss:
                self.trust = min(max(self.trust, 1.5 * float(moved.norm())), self.ball.radius / 2)
                self.best = at
            else:
                self.trust = 0.5 * float(moved.norm())
        x, gradient = self.best.delta, self.best.gradient
        gradient = self.ball.tangent(x, gradient, float(-gradient @ x))
        direction = self.direction(gradient)
        direction = self.ball.tangent(x, direction, float(direction @ x))
        if direction @ gradient >= 0:
            direction = -gradient
        length = float(direction.norm())
        wanted = min(length, self.trust) if self.pairs else self.trust
        return self.ball.project(x + direction * (wanted / length))

    def remember(self, s: Tensor, y: Tensor) -> None:
        """The secant pair, bent towards a scaled identity where the curvature is negative."""
        scale = y.norm() / s.norm()
        if self.pairs:
            s_last, y_last = self.pairs[-1]
            scale = y_last @ y_last / (s_last @ y_last)
        least = scale * (s @ s)
        if s @ y < 0.2 * least:
            mix = 0.8 * least / (least - s @ y)
            y = mix * y + (1 - mix) * scale * s
        self.pairs = [*self.pairs, (s, y)][-self.memory :]

    def direction(self, gradient: Tensor) -> Tensor:
        """The two-loop recursion."""
        q, alphas = gradient.clone(), []
        for s, y in reversed(self.pairs):
            alphas.append((s @ q) / (s @ y))
            q = q - alphas[-1] * y
        if self.pairs:
            s, y = self.pairs[-1]
            q = q * (s @ y) / (y @ y)
        for (s, y), alpha in zip(self.pairs, reversed(alphas), strict=True):
            q = q + s * (alpha - (y @ q) / (s @ y))
        return -q


class LbfgsWithEarlierPairs(Lbfgs):
    """Begins with the pairs that the search before it ended with."""

    earlier: ClassVar[list[tuple[Tensor, Tensor]]] = []

    def __init__(self, ball: Ball) -> None:
        super().__init__(ball)
        self.pairs = list(self.earlier)

    def step(self, at: Evaluation) -> Tensor:
        moved = super().step(at)
        type(self).earlier = self.pairs
        return moved


class GaussNewton:
    """Every context's log odds linearised, their softplus kept; the least step that is enough.

    The model lives in the span of the row gradients; a trust radius backtracks as in Lbfgs.
    """

    def __init__(self, ball: Ball, share: float = 0.3) -> None:
        self.ball, self.trust = ball, share * ball.radius
        self.best: Evaluation | None = None
        self.promised = 1.0

    def step(self, at: Evaluation) -> Tensor:
        if self.best is None:
            self.best = at
        else:
            gain, length = self.best.loss - at.loss, float((at.delta - self.best.delta).norm())
            if gain <= 0:
                self.trust = 0.35 * length
            elif gain > 0.6 * self.promised:
                self.trust = min(max(self.trust, 2 * length), 0.6 * self.ball.radius)
            elif gain < 0.25 * self.promised:
                self.trust = 0.6 * length
            if gain > 0:
                self.best = at
        delta, predicted = self.solve(self.best)
        self.promised = max(self.best.loss - predicted, 1e-9)
        return delta

    def solve(self, at: Evaluation) -> tuple[Tensor, float]:
        """The next point and the loss that the model has there; ever less damping until AIM."""
        losses = at.row_losses.double()
        odds = log_odds(losses)
        rows = -at.row_gradients.double() / (1 - torch.exp(-losses))[:, None]
        root = math.sqrt(2 * max(at.kl, 1e-12))
        joint = torch.cat([rows, at.kl_gradient.double()[None] / max(root, 1e-2), at.delta[None]])
        basis = torch.linalg.qr(joint.T)[0]
        reduced = joint @ basis
        step, reached = torch.zeros(basis.shape[1], dtype=torch.float64), at.delta
        damping = float((reduced[:-2].T @ torch.sigmoid(-odds)).norm()) / len(odds) / self.trust
        loss, damping = at.loss, 50 * damping
        for _ in range(24):
            for _ in range(6):
                step = step + self.newton(step, odds, reduced, root, damping)
            if step.norm() > self.trust:
                break
            reached = self.ball.project((at.delta + basis @ step).to(at.delta.dtype))
            moved = basis.T @ (reached - at.delta).double()
            loss = float(torch.nn.functional.softplus(-(odds + reduced[:-2] @ moved)).mean())
            loss += self.ball.kl_factor / 2 * float(root + reduced[-2] @ moved) ** 2
            if loss + self.ball.decay * float(reached.norm()) <= AIM:
                break
            damping /= 2
        return reached, loss + self.ball.decay * float(reached.norm())

    def newton(
        self, step: Tensor, odds: Tensor, reduced: Tensor, root: float, damping: float
    ) -> Tensor:
        """One Newton step of the damped model, [n_basis]."""
        rows, kl, origin = reduced[:-2], reduced[-2], reduced[-1]
        missing = torch.sigmoid(-(odds + rows @ step))
        point = origin + step
        gradient = -(rows.T @ missing) / len(odds) + damping * step
        gradient = gradient + self.ball.kl_factor * (root + kl @ step) * kl
        gradient = gradient + self.ball.decay * point / point.norm().clamp_min(1e-9)
        hessian = (rows.T * (missing * (1 - missing) / len(odds))) @ rows
        hessian = hessian + self.ball.kl_factor * torch.outer(kl, kl)
        hessian.diagonal().add_(damping)
        return torch.linalg.solve(hessian, -gradient)


class Scaled:
    """Another solver in coordinates in which gradients are alike, as Adam's are.

    A step along the gradient is there one of equal length in all coordinates of the offset: the
    first row gradients give the scale, to the power of ``share`` (0: none, 1: that of Adam).
    """

    def __init__(self, ball: Ball, inner: Callable[[Ball], Any], share: float = 1.0) -> None:
        self.ball, self.share = ball, share
        self.inner = inner(ball)
        self.scale: Tensor | None = None

    def step(self, at: Evaluation) -> Tensor:
        if self.scale is None:
            size = at.row_gradients.square().mean(0).sqrt() + 1e-12
            scale = (size.log().mean().exp() / size).pow(self.share / 2)
            self.scale = scale / scale.square().mean().sqrt()
        scale = self.scale
        moved = replace(
            at,
            delta=at.delta / scale,
            gradient=at.gradient * scale,
            row_gradients=at.row_gradients * scale,
            kl_gradient=at.kl_gradient * scale,
        )
        return self.ball.project(scale * self.inner.step(moved))


class SignMomentum:
    """Steps of nearly equal length in all coordinates, which fall geometrically."""

    def __init__(self, ball: Ball, share: float = 0.25, keep: float = 0.5, shrink: float = 0.8):
        self.ball, self.keep, self.shrink = ball, keep, shrink
        self.length = share * ball.radius
        self.sum: Tensor | None = None

    def step(self, at: Evaluation) -> Tensor:
        before = torch.zeros_like(at.gradient) if self.sum is None else self.sum
        self.sum = self.keep * before + at.gradient / at.gradient.norm()
        direction = self.sum.sign() * self.sum.abs().sqrt()
        delta = at.delta - self.length * direction / direction.norm()
        self.length *= self.shrink
        return self.ball.project(delta)


SOLVERS: dict[str, Callable[[Ball], Any]] = {
    "adam": Adam,
    "polyak": lambda ball: Momentum(ball, share=0.25, keep=0.0, shrink=1.0),
    "momentum": Momentum,
    "barzilai_borwein": lambda ball: Lbfgs(ball, memory=1),
    "lbfgs": Lbfgs,
    "lbfgs, earlier pairs": LbfgsWithEarlierPairs,
    "gauss_newton": GaussNewton,
    "scaled gauss_newton": lambda ball: Scaled(ball, GaussNewton),
    "scaled lbfgs": lambda ball: Scaled(ball, Lbfgs),
    "wide gauss_newton": lambda ball: GaussNewton(ball, share=0.6),
    "wide lbfgs": lambda ball: Lbfgs(ball, share=0.5),
    "signs": SignMomentum,
}
