"""The state that the search for v* updates: each request's offset, in its own norm ball."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rome_fast import ops

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.hparams import RomeHparams

# Marks a step of a history that has not been made. NaN and inf are losses, which end a search.
NO_LOSS = float("-inf")


class Offsets(ABC):
    """The offsets, their balls and their early stops, whatever finds the next point.

    Attributes:
        deltas: [n_edits, d_value], where the next pass looks.
        n_steps: int64 [], steps that were made.
        history: [max_steps, n_edits], the losses before each update; NO_LOSS where there is none.
        active: bool [n_edits], which requests have not stopped.
        radii, decays: [n_edits], radii of the balls, and the decay loss per unit of norm.
        constants: the other inputs of a step.
    """

    # All tensors, and those whose first axis is that of the requests.
    TENSORS: tuple[str, ...] = ("deltas", "n_steps", "history", "active", "radii", "decays")
    OF_EDITS: tuple[str, ...] = ("deltas", "active", "radii", "decays")

    def __init__(self, value_init: Tensor, hparams: RomeHparams, backend: str) -> None:
        n_edits, device = len(value_init), value_init.device
        self.deltas = torch.zeros_like(value_init)
        self.n_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.history = value_init.new_full((hparams.v_num_grad_steps, n_edits), NO_LOSS)
        self.active = torch.ones(n_edits, dtype=torch.bool, device=device)
        norms = value_init.norm(dim=1)
        self.radii = hparams.clamp_norm_factor * norms
        self.decays = hparams.v_weight_decay / norms**2
        self.stop_loss = hparams.v_stop_loss
        self.mean_loss_suffices = hparams.variant == "original"
        rule = (self.stop_loss, self.mean_loss_suffices)
        self.constants = (type(self).__name__, hparams.v_lr, *rule, backend)

    def totals(self, losses: Tensor) -> Tensor:
        """The losses [n_edits] with the decay: a norm, not its square, as in the reference."""
        return losses.to(self.decays) + self.decays * self.deltas.detach().norm(dim=1)

    def found(self, totals: Tensor, right: Tensor) -> Tensor:
        """Whether each request may stop: its loss is low, and every context gives the target."""
        low = totals < self.stop_loss
        return low if self.mean_loss_suffices else low & right.to(low.device)

    @abstractmethod
    def step(self, gradients: Tensor, losses: Tensor, right: Tensor) -> None:
        """Record the losses, stop what is found, update the others; stopped ones never change.

        Args:
            gradients: [n_edits, d_value], without the decay's; losses: likewise.
        """

    def ends(self, totals: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """Where requests end that stop now, [n_edits, d_value], and the losses there."""
        return self.deltas.detach(), totals

    def keep(self, edits: Sequence[int]) -> None:
        """Go on with some of the requests only."""
        for name in self.OF_EDITS:
            setattr(self, name, getattr(self, name).detach()[edits])
        self.history = self.history[:, edits]


class Adam(Offsets):
    """The reference's search: Adam, projected onto the ball after every step.

    Attributes:
        mean, square: [n_edits, d_value], its moments.
    """

    TENSORS = (*Offsets.TENSORS, "mean", "square")
    OF_EDITS = (*Offsets.OF_EDITS, "mean", "square")

    def __init__(self, value_init: Tensor, hparams: RomeHparams, backend: str) -> None:
        super().__init__(value_init, hparams, backend)
        self.mean, self.square = torch.zeros_like(value_init), torch.zeros_like(value_init)
        self._lr, self._backend = hparams.v_lr, backend

    def step(self, gradients: Tensor, losses: Tensor, right: Tensor) -> None:
        device = self.deltas.device
        ops.value_step_(
            *(self.deltas, self.mean, self.square, self.n_steps, self.history, self.active),
            gradients,
            losses.to(device),
            right.to(device),
            self.radii,
            self.decays,
            lr=self._lr,
            stop_loss=self.stop_loss,
            mean_loss_suffices=self.mean_loss_suffices,
            backend=self._backend,
        )
