"""What the search for v* minimises, and the state that it updates: one step, in two ops.

Neither op synchronises with the host, so that a step can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rome_fast import ops
from rome_fast.model.precision import widen

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.hparams import RomeHparams
    from rome_fast.value.batch import EditBatch

# Marks a step of a history that has not been made. NaN and inf are losses, which end a search.
NO_LOSS = float("-inf")


class Objective:
    """NLL of the targets, and kl_factor * KL(edited || before the edit), with their gradient.

    Attributes:
        target_ids, edit_of_read: int64 [n_reads], of the batch.
        log_probs_init: [n_edits, vocabulary], the KL's reference; None until the first call, which
            sets it from its own logits.
        constants: its other inputs.
    """

    TENSORS = ("target_ids", "edit_of_read", "log_probs_init")

    def __init__(self, batch: EditBatch, hparams: RomeHparams, backend: str) -> None:
        self._batch, self._backend = batch, backend
        self._kl_factor = hparams.kl_factor
        self.constants = (self._kl_factor, backend)
        self.target_ids, self.edit_of_read = batch.target_ids, batch.edit_of_read
        self.log_probs_init: Tensor | None = None

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, gradient and correctness from logits [n_reads + n_edits, vocabulary].

        Returns:
            losses [n_edits], the gradient of their sum (shape and dtype of the logits), and
            whether each request's target is the likeliest in all its contexts [n_edits].
        """
        self._come_to(logits.device)
        losses, gradient, right, log_probs = ops.value_loss(
            logits,
            self.target_ids,
            self.edit_of_read,
            self.log_probs_init,
            kl_factor=self._kl_factor,
            backend=self._backend,
        )
        if self.log_probs_init is None:
            self.log_probs_init = log_probs
        return losses, gradient, right

    def start_from(self, logits: Tensor) -> None:
        """Set the KL's reference from logits [n_reads + n_edits, vocabulary]."""
        self._come_to(logits.device)
        log_probs = widen(logits[len(self.target_ids) :]).log_softmax(-1)
        if self.log_probs_init is None:
            self.log_probs_init = log_probs
        else:
            self.log_probs_init.copy_(log_probs)

    def keep(self, edits: Sequence[int]) -> None:
        """Go on with some of the requests only."""
        assert self.log_probs_init is not None
        self._batch = self._batch.select(edits)
        self.target_ids, self.edit_of_read = self._batch.target_ids, self._batch.edit_of_read
        self.log_probs_init = self.log_probs_init[edits]

    def _come_to(self, device: torch.device) -> None:
        self.target_ids = self.target_ids.to(device)
        self.edit_of_read = self.edit_of_read.to(device)


class Offsets:
    """Each request's offset, with its own Adam state, its own norm ball and its own early stop.

    Attributes:
        deltas, mean, square: [n_edits, d_value], the offsets and Adam's moments.
        n_steps: int64 [], steps that were made.
        history: [max_steps, n_edits], the losses before each update; NO_LOSS where there is none.
        active: bool [n_edits], which requests have not stopped.
        radii, decays: [n_edits], radii of the balls, and the decay loss per unit of norm.
        constants: the other inputs of a step.
    """

    TENSORS = ("deltas", "mean", "square", "n_steps", "history", "active", "radii", "decays")

    def __init__(self, value_init: Tensor, hparams: RomeHparams, backend: str) -> None:
        n_edits, self._backend = len(value_init), backend
        self.deltas, self.mean = torch.zeros_like(value_init), torch.zeros_like(value_init)
        self.square = torch.zeros_like(value_init)
        self.n_steps = torch.zeros((), dtype=torch.int64, device=value_init.device)
        self.history = value_init.new_full((hparams.v_num_grad_steps, n_edits), NO_LOSS)
        self.active = torch.ones(n_edits, dtype=torch.bool, device=value_init.device)
        norms = value_init.norm(dim=1)
        self.radii = hparams.clamp_norm_factor * norms
        self.decays = hparams.v_weight_decay / norms**2
        self._lr, self.stop_loss = hparams.v_lr, hparams.v_stop_loss
        self.mean_loss_suffices = hparams.variant == "original"
        self.constants = (self._lr, self.stop_loss, self.mean_loss_suffices, backend)

    def totals(self, losses: Tensor) -> Tensor:
        """The losses [n_edits] with the decay: a norm, not its square, as in the reference."""
        return losses.to(self.decays) + self.decays * self.deltas.detach().norm(dim=1)

    def found(self, totals: Tensor, right: Tensor) -> list[bool]:
        """Whether each request may stop: its loss is low, and every context gives the target."""
        low = [total < self.stop_loss for total in totals.tolist()]
        if self.mean_loss_suffices or not any(low):
            return low
        return [a and b for a, b in zip(low, right.tolist(), strict=True)]

    def step(self, gradients: Tensor, losses: Tensor, right: Tensor) -> None:
        """Record the losses, stop what is found, update the others; stopped ones never change.

        Args:
            gradients: [n_edits, d_value], without the decay's; losses: likewise.
        """
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

    def keep(self, edits: Sequence[int]) -> None:
        """Go on with some of the requests only."""
        for name in ("deltas", "mean", "square", "active", "radii", "decays"):
            setattr(self, name, getattr(self, name).detach()[edits])
        self.history = self.history[:, edits]
