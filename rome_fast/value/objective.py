"""What the search for v* minimises.

Nothing synchronises with the host, so that a step can be captured as a CUDA graph.
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
