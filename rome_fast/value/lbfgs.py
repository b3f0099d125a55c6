"""``solver="lbfgs"``: v* is searched by L-BFGS in a trust region inside the norm ball.

All requests of a batch step together, each by its own history. Nothing is decided on the host, so
that a step can be captured as a CUDA graph (Nocedal and Wright, Numerical Optimization, 7.2 and
18.3; beside Adam: docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rome_fast.value.offsets import NO_LOSS, Offsets

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.hparams import RomeHparams

# Pairs of a move and the change of the gradient along it that are remembered.
MEMORY = 8

# A step that has made the loss smaller allows one that is so much longer; one that has not is
# taken back, and allows one of half its length.
LONGER, SHORTER = 1.5, 0.5
# No step is longer than this share of the ball's radius.
LONGEST = 0.5

# Where the gradient has changed by less than this share of what the last pair says, the pair is
# bent until it has (Powell's damping), or the curvature would be taken for zero or less.
LEAST_CURVATURE = 0.2

TINY = 1e-12


class Lbfgs(Offsets):
    """Offsets with what L-BFGS remembers of the points that it has seen.

    Attributes:
        best, best_gradients: [n_edits, d_value], the best point so far, and the gradient there.
        best_losses, trust: [n_edits, 1], its loss, and how far the next point may be from it.
        moves, changes: [MEMORY, n_edits, d_value], the pairs, zero where there is none yet.
    """

    TENSORS = (
        *Offsets.TENSORS,
        "best",
        "best_gradients",
        "best_losses",
        "trust",
        "moves",
        "changes",
    )
    OF_EDITS = (*Offsets.OF_EDITS, "best", "best_gradients", "best_losses", "trust")

    def __init__(self, value_init: Tensor, hparams: RomeHparams, backend: str) -> None:
        super().__init__(value_init, hparams, backend)
        self.best, self.best_gradients = torch.zeros_like(value_init), torch.zeros_like(value_init)
        self.best_losses = torch.full_like(value_init[:, :1], torch.inf)
        # As long as the first step of Adam would be.
        first = hparams.v_lr * value_init.shape[1] ** 0.5
        self.trust = (LONGEST * self.radii[:, None]).clamp(max=first)
        self.moves = value_init.new_zeros(MEMORY, *value_init.shape)
        self.changes = torch.zeros_like(self.moves)

    def ends(self, totals: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """The best point that a request has seen, where the rule has not stopped it."""
        is_this = found | ~(totals >= self.best_losses[:, 0])
        deltas = torch.where(is_this[:, None], self.deltas.detach(), self.best)
        return deltas, torch.where(is_this, totals, self.best_losses[:, 0])

    @torch.no_grad()
    def step(self, gradients: Tensor, losses: Tensor, right: Tensor) -> None:
        deltas, losses = self.deltas.detach(), losses.to(self.deltas.device)
        totals = self.totals(losses)
        found = self.found(totals, right)
        ends, reached = self.ends(totals, found)
        self.history.index_copy_(
            0, self.n_steps[None], torch.where(self.active, reached, NO_LOSS)[None]
        )
        stops = found | (self.n_steps + 1 == len(self.history))
        norms = deltas.norm(dim=1, keepdim=True)
        decay = self.decays[:, None] * deltas / norms.clamp(min=TINY)
        moved = self._next(gradients + decay, totals)
        moved = torch.where(stops[:, None], ends, moved)
        deltas.copy_(torch.where(self.active[:, None], moved, deltas))
        self.active.logical_and_(~stops)
        self.n_steps.add_(1)

    def _next(self, gradients: Tensor, totals: Tensor) -> Tensor:
        """The next points, inside of the balls."""
        self._look_back(gradients, totals[:, None])
        x, radii = self.best, self.radii[:, None]
        downhill = -self.best_gradients
        on_sphere = x.norm(dim=1, keepdim=True) >= 0.999 * radii
        gradient = -_tangential(downhill, x, on_sphere)
        direction, is_known = self._direction(gradient)
        direction = _tangential(direction, x, on_sphere)
        direction = torch.where(_dot(direction, gradient) < 0, direction, -gradient)
        length = direction.norm(dim=1, keepdim=True).clamp(min=TINY)
        wanted = torch.where(is_known, torch.minimum(length, self.trust), self.trust)
        moved = x + direction * (wanted / length)
        return moved * (radii / moved.norm(dim=1, keepdim=True).clamp(min=TINY)).clamp(max=1)

    def _look_back(self, gradients: Tensor, totals: Tensor) -> None:
        """Remember the last move, and go back where it has made the loss greater."""
        deltas = self.deltas.detach()
        moved, changed = deltas - self.best, gradients - self.best_gradients
        self._remember(moved, changed)
        length, is_better = moved.norm(dim=1, keepdim=True), totals < self.best_losses
        longest = LONGEST * self.radii[:, None]
        longer = torch.minimum(torch.maximum(self.trust, LONGER * length), longest)
        self.trust.copy_(torch.where(is_better, longer, SHORTER * length))
        self.best.copy_(torch.where(is_better, deltas, self.best))
        self.best_gradients.copy_(torch.where(is_better, gradients, self.best_gradients))
        self.best_losses.copy_(torch.where(is_better, totals, self.best_losses))

    def _remember(self, moved: Tensor, changed: Tensor) -> None:
        before, after = self.moves[-1], self.changes[-1]
        known = _dot(before, after)
        along, square = _dot(moved, changed), _dot(moved, moved)
        scale = torch.where(
            known > 0, _dot(after, after) / known, (_dot(changed, changed) / square).sqrt()
        )
        least = scale * square
        mix = (1 - LEAST_CURVATURE) * least / (least - along)
        bent = mix * changed + (1 - mix) * scale * moved
        changed = torch.where(along < LEAST_CURVATURE * least, bent, changed)
        is_move = square > 0  # the first point is no move
        self.moves.copy_(torch.cat([self.moves[1:], torch.where(is_move, moved, 0)[None]]))
        self.changes.copy_(torch.cat([self.changes[1:], torch.where(is_move, changed, 0)[None]]))

    def _direction(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Downhill by the two-loop recursion, and whether there is a pair that says how far."""
        curvatures = _dot(self.moves, self.changes)
        rates = torch.where(curvatures > 0, 1 / curvatures, 0)
        q, shares = gradient, [gradient[:, :1]] * MEMORY
        for i in reversed(range(MEMORY)):
            shares[i] = rates[i] * _dot(self.moves[i], q)
            q = q - shares[i] * self.changes[i]
        is_known = curvatures[-1] > 0
        last = self.changes[-1]
        q = q * torch.where(is_known, curvatures[-1] / _dot(last, last), 1)
        for i in range(MEMORY):
            q = q + (shares[i] - rates[i] * _dot(self.changes[i], q)) * self.moves[i]
        return -q, is_known

    def keep(self, edits: Sequence[int]) -> None:
        super().keep(edits)
        self.moves, self.changes = self.moves[:, edits], self.changes[:, edits]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _tangential(direction: Tensor, x: Tensor, on_sphere: Tensor) -> Tensor:
    """Without its part that leads out of the ball, where x lies on the sphere."""
    outward = _dot(direction, x).clamp(min=0)
    inside = direction - outward / _dot(x, x).clamp(min=TINY**2) * x
    return torch.where(on_sphere, inside, direction)
