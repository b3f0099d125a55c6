"""v*: the output of the edited matrix that makes the model say the target.

An offset ``value_delta`` to the value at the lookup token is optimised through the model (ROME,
section 3.1, step 2; kmeng01/rome, compute_v.py), with the model's weights fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.errors import NonFiniteError
from rome_fast.key import widen
from rome_fast.models import DownProjection
from rome_fast.tail import tail_forward

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from rome_fast.hparams import RomeHparams
    from rome_fast.tokens import TokenizedEdit

# The loss at which v* counts as found (compute_v.py).
LOSS_FOUND = 5e-2


@dataclass(frozen=True, eq=False)
class Value:
    """The optimised offset: v* = value_init + value_delta.

    Attributes:
        value_delta: [d_value], float32 (float64 for a float64 model).
        losses: the loss before each update, in order; the last one belongs to ``value_delta``.
    """

    value_delta: Tensor
    losses: tuple[float, ...]

    def findings(self) -> list[str]:
        """What a user should know about the search."""
        if self.losses[-1] < 10 * LOSS_FOUND:
            return []
        steps = f"loss {self.losses[-1]:.2f} after {len(self.losses)} steps"
        remedy = "more v_num_grad_steps, a larger clamp_norm_factor or another layer"
        return [f"v* did not converge: {steps}; try {remedy}"]


def optimize_value(
    model: PreTrainedModel,
    projection: DownProjection,
    tokens: TokenizedEdit,
    value_init: Tensor,
    hparams: RomeHparams,
) -> Value:
    """Minimise NLL(target) + kl_factor * KL + decay over the offset, with Adam.

    ``v_num_grad_steps`` forwards, one update fewer; it stops early when the loss is below 0.05
    and the target is the likeliest answer in every context (``variant="original"``: on the loss
    alone, as the reference does; a mean can hide the bare prompt). After each update the offset
    is projected to the ball of radius ``clamp_norm_factor * ||value_init||``.

    Args:
        value_init: [d_value], what the matrix writes on the bare prompt.

    Raises:
        NonFiniteError: the loss became NaN or infinite; names step and layer.
    """
    delta = torch.zeros_like(value_init, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=hparams.v_lr)
    radius = hparams.clamp_norm_factor * value_init.norm()
    objective = _Objective(tokens, value_init, hparams)
    losses: list[float] = []
    with (
        tail_forward(
            model, projection, tokens.input_ids, tokens.attention_mask, objective.read_at
        ) as logits,
        torch.enable_grad(),
        _offset_at_lookup(projection, tokens.lookup_idx, delta),
    ):
        for step in range(hparams.v_num_grad_steps):
            loss, said = objective(logits(), delta)
            losses.append(loss.item())
            if not torch.isfinite(loss):
                raise NonFiniteError(
                    f"the loss became {losses[-1]} at step {step} of v* in layer "
                    f"{projection.layer} ({projection.name}): run the model in float32 or "
                    "bfloat16, or lower hparams.v_lr"
                )
            found = losses[-1] < LOSS_FOUND and (hparams.variant == "original" or bool(said))
            if found or step == hparams.v_num_grad_steps - 1:
                break
            (delta.grad,) = torch.autograd.grad(loss, [delta])
            optimizer.step()
            with torch.no_grad():
                norm = delta.norm()
                if norm > radius:
                    delta.mul_(radius / norm)
    return Value(delta.detach(), tuple(losses))


@contextmanager
def _offset_at_lookup(
    projection: DownProjection, lookup_idx: Tensor, delta: Tensor
) -> Iterator[None]:
    """While open, the matrix' output at every row's lookup token is moved by ``delta``."""

    def move(module: Any, args: Any, output: Tensor) -> Tensor:
        n_rows = len(lookup_idx)
        # Some families flatten batch and time before the MLP; as flat rows both look alike.
        flat = output.reshape(-1, output.shape[-1])
        row_starts = torch.arange(n_rows) * (len(flat) // n_rows)
        index = (row_starts + lookup_idx).to(output.device)
        offset = delta.to(output.device, output.dtype).expand(n_rows, -1)
        return flat.index_add(0, index, offset).view_as(output)

    handle = projection.module.register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


class _Objective:
    """Loss of an offset, and whether every context says the target (bool []).

    Remembers the KL row's distribution of its first call.

    Attributes:
        read_at: (rows, positions), int64 [n_contexts * n_target + 1] each: where it reads logits.
            The last is the subject's token of "<subject> is a".
    """

    def __init__(self, tokens: TokenizedEdit, value_init: Tensor, hparams: RomeHparams) -> None:
        n_contexts, n_target = tokens.n_contexts, len(tokens.target_ids)
        rows = torch.arange(n_contexts + 1).repeat_interleave(n_target)
        positions = (tokens.target_start[:, None] + torch.arange(n_target)).flatten()
        kl_at = tokens.lookup_idx[n_contexts : n_contexts + 1]
        self.read_at = rows[: len(positions) + 1], torch.cat([positions, kl_at])
        self.target_ids = tokens.target_ids.repeat(n_contexts)
        self.kl_init: Tensor | None = None
        self.kl_factor = hparams.kl_factor
        self.decay = hparams.v_weight_decay / value_init.norm() ** 2

    def __call__(self, logits: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = widen(logits).log_softmax(-1)
        read, kl_now = log_probs[:-1], log_probs[-1]
        target_ids = self.target_ids.to(read.device)
        nll = -read.gather(-1, target_ids[:, None]).mean()
        if self.kl_init is None:
            self.kl_init = kl_now.detach()
        # KL(edited || before the edit).
        kl = (kl_now.exp() * (kl_now - self.kl_init)).sum()
        # A norm, not its square, as in the reference; its gradient at zero is zero.
        decay = self.decay.to(delta.device) * delta.norm()
        said = (read.argmax(-1) == target_ids).all()
        return nll + self.kl_factor * kl + decay.to(nll.device), said
