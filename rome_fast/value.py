"""v*: the output of the edited matrix that makes the model say the target.

An offset ``value_delta`` to the value at the lookup token is optimised through the model (ROME,
section 3.1, step 2; kmeng01/rome, compute_v.py), with the model's weights fixed. The requests of a
batch are searched at once; each has its own offset, its own Adam and its own end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import NonFiniteError
from rome_fast.key import widen
from rome_fast.models import DownProjection
from rome_fast.nonfinite import where_not_finite
from rome_fast.search import Search

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from rome_fast.batch import EditBatch
    from rome_fast.first_pass import FirstPass
    from rome_fast.hparams import RomeHparams

# A loss of this much after all steps means that v* says the target nowhere near surely.
NOT_CONVERGED = 0.5


@dataclass(frozen=True, eq=False)
class Value:
    """The optimised offset: v* = value_init + value_delta.

    Attributes:
        value_delta: [d_value], float32 (float64 for a float64 model).
        losses: the loss before each update, in order; the last one belongs to ``value_delta``.
        obstacle: why the whole model was run in every step, or "".
        shortage: that memory was too short for all rows at once, or "".
    """

    value_delta: Tensor
    losses: tuple[float, ...]
    obstacle: str = ""
    shortage: str = ""

    def findings(self) -> list[str]:
        """What a user should know about the search."""
        found = [self.shortage] if self.shortage else []
        if self.obstacle:
            found.append(f"v* was searched through the whole model, slowly: {self.obstacle}")
        if self.losses[-1] >= NOT_CONVERGED:
            steps = f"loss {self.losses[-1]:.2f} after {len(self.losses)} steps"
            remedy = "more v_num_grad_steps, a larger clamp_norm_factor or another layer"
            found.append(f"v* did not converge: {steps}; try {remedy}")
        return found


def optimize_values(
    model: PreTrainedModel,
    projection: DownProjection,
    batch: EditBatch,
    first: FirstPass,
    value_init: Tensor,
    hparams: RomeHparams,
    weights: dict[str, Tensor] | None = None,
) -> list[Value]:
    """Minimise NLL(target) + kl_factor * KL + decay over each request's offset, with Adam.

    ``v_num_grad_steps`` forwards, one update fewer; a request stops early when its loss is below
    ``v_stop_loss`` (compute_v.py: 0.05) and the target is the likeliest answer in every context
    (``variant="original"``: on the loss alone, as the reference does; a mean can hide the bare
    prompt). After each update the offset is projected to the ball of radius
    ``clamp_norm_factor * ||value_init||``.

    Args:
        first: the first pass over ``batch``.
        value_init: [n_edits, d_value], what the matrix writes on the bare prompts.
        weights: bfloat16 copies to run instead of the model's own; the offsets, the losses and
            Adam's state stay in float32.

    Raises:
        NonFiniteError: a loss became NaN or infinite; names step and layer.
    """
    search = Search(model, projection, batch, first, weights)
    objective, adam = Objective(batch, value_init, hparams), _Adam(value_init, hparams)
    active = list(range(batch.n_edits))
    histories: list[list[float]] = [[] for _ in active]
    values: dict[int, Value] = {}
    for step in range(1, hparams.v_num_grad_steps + 1):
        deltas = adam.deltas.requires_grad_()
        with torch.enable_grad():
            losses, reads = objective(search.logits(deltas), deltas)
        for i, loss in zip(active, losses.tolist(), strict=True):
            histories[i].append(loss)
            if not math.isfinite(loss):
                said = f"the loss became {loss} at step {step} of v* in layer {projection.layer}"
                raise NonFiniteError(f"{said}: {_cause(model, search, deltas, step)}")
        last = step == hparams.v_num_grad_steps
        found = [last or f for f in objective.found(losses, reads)]
        for j, i in enumerate(active):
            if found[j]:
                value_delta = deltas[j].detach().clone()
                values[i] = Value(value_delta, tuple(histories[i]), search.obstacle)
        if all(found):
            break
        (gradients,) = torch.autograd.grad(losses.sum(), [deltas])
        adam.step(gradients)
        if any(found):
            going_on = [j for j, f in enumerate(found) if not f]
            active = [active[j] for j in going_on]
            for part in (search, objective, adam):
                part.keep(going_on)
    return [values[i] for i in range(batch.n_edits)]


def _cause(model: PreTrainedModel, search: Search, deltas: Tensor, step: int) -> str:
    if not torch.isfinite(deltas).all():
        dtype = str(model.dtype).removeprefix("torch.")
        return f"the gradient of step {step - 1} overflows {dtype}: load the model in bfloat16"
    moved = "" if step == 1 else "moved by the offset, "
    where = where_not_finite(model, lambda: search.run_whole(deltas))
    return f"{moved}{where}" + (", or lower hparams.v_lr" if moved else "")


class _Adam:
    """Adam (torch's defaults) on each request's offset, then the projection to its ball.

    Attributes:
        deltas: [n_edits, d_value].
    """

    def __init__(self, value_init: Tensor, hparams: RomeHparams) -> None:
        self.deltas = torch.zeros_like(value_init)
        self._lr = hparams.v_lr
        self._radii = hparams.clamp_norm_factor * value_init.norm(dim=1, keepdim=True)
        self._mean = torch.zeros_like(value_init)
        self._square = torch.zeros_like(value_init)
        self._n_steps = 0

    @torch.no_grad()
    def step(self, gradients: Tensor) -> None:
        self._n_steps += 1
        self._mean.lerp_(gradients, 0.1)
        self._square.mul_(0.999).addcmul_(gradients, gradients, value=0.001)
        scale = (self._square / (1 - 0.999**self._n_steps)).sqrt_().add_(1e-8)
        deltas = self.deltas - self._lr / (1 - 0.9**self._n_steps) * self._mean / scale
        norms = deltas.norm(dim=1, keepdim=True)
        self.deltas = torch.where(norms > self._radii, deltas * (self._radii / norms), deltas)

    def keep(self, edits: Sequence[int]) -> None:
        """Go on with some of the requests only."""
        for name in ("deltas", "_radii", "_mean", "_square"):
            setattr(self, name, getattr(self, name)[edits])


class Objective:
    """The losses of the offsets, and which requests count as found."""

    def __init__(self, batch: EditBatch, value_init: Tensor, hparams: RomeHparams) -> None:
        self._settle(batch)
        self._kl_init: Tensor | None = None
        self._kl_factor, self._enough = hparams.kl_factor, hparams.v_stop_loss
        self._decays = hparams.v_weight_decay / value_init.norm(dim=1) ** 2
        self._mean_loss_suffices = hparams.variant == "original"

    def _settle(self, batch: EditBatch) -> None:
        self._batch = batch
        self._counts = torch.bincount(batch.edit_of_read).tolist()

    def __call__(self, logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """(losses [n_edits], log-probabilities at the targets' reads [n_reads, vocabulary]).

        The KL is measured from the distribution of the first call.
        """
        log_probs = widen(logits).log_softmax(-1)
        # The backward of a split joins gradients; that of two slices would fill and add zeros.
        reads, kl_now = log_probs.split([len(self._batch.target_ids), self._batch.n_edits])
        nll = -reads.gather(-1, self._batch.target_ids[:, None].to(reads.device))[:, 0]
        means = torch.stack([part.mean() for part in nll.split(self._counts)])
        if self._kl_init is None:
            # A copy: the split's part would keep all log-probabilities of the first step.
            self._kl_init = kl_now.detach().clone()
        # KL(edited || before the edit).
        kl = (kl_now.exp() * (kl_now - self._kl_init)).sum(-1)
        # A norm, not its square, as in the reference; its gradient at zero is zero.
        decay = self._decays.to(deltas.device) * deltas.norm(dim=1)
        return means + self._kl_factor * kl + decay.to(means.device), reads.detach()

    def found(self, losses: Tensor, reads: Tensor) -> list[bool]:
        """Whether each request's search may end."""
        low = [loss < self._enough for loss in losses.tolist()]
        if self._mean_loss_suffices or not any(low):
            return low
        right = reads.argmax(-1) == self._batch.target_ids.to(reads.device)
        return [a and bool(b.all()) for a, b in zip(low, right.split(self._counts), strict=True)]

    def keep(self, edits: Sequence[int]) -> None:
        """Go on with some of the requests only."""
        self._settle(self._batch.select(edits))
        assert self._kl_init is not None
        self._kl_init, self._decays = self._kl_init[edits], self._decays[edits]
