"""The objective of one request as a function of its offset, on as many rows as a search asks for.

Rows are the contexts, and behind them the KL prompt. They run the suffix forward of rome_fast's own
search (`value/suffix_forward.py`), each with an offset of its own, so that one backward gives the
gradient of every row. What a search costs is counted in rows: a forward one, a backward another.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.model.intercept import hidden_of, with_hidden
from rome_fast.value.batch import EditBatch
from rome_fast.value.first_pass import FirstPass, run_first_pass
from rome_fast.value.key import mean_keys
from rome_fast.value.suffix_forward import Rows, SuffixForward

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from rome_fast.hparams import RomeHparams
    from rome_fast.model.spec import DownProjection, ModelSpec
    from rome_fast.prompt.encode import TokenizedEdit
    from rome_fast.value.prefix import PrefixSplit


@dataclass
class Evaluation:
    """The objective at one point, on some of the rows.

    Attributes:
        delta, gradient: [d].
        loss: mean of row_losses + kl_factor * kl + decay * ||delta||.
        rows: the contexts that ran, and n_contexts if the KL prompt did.
        row_losses: [contexts that ran], each the mean NLL of the target's tokens.
        row_gradients: [contexts that ran, d] of row_losses; kl_gradient: [d] of kl.
        said: whether the target is the likeliest answer in every context that ran.
    """

    delta: Tensor
    loss: float
    gradient: Tensor
    rows: tuple[int, ...]
    row_losses: Tensor
    row_gradients: Tensor
    kl: float
    kl_gradient: Tensor
    said: bool


@dataclass
class Ball:
    """Where a search may go, and what it must know of the objective."""

    radius: float
    lr: float
    decay: float
    kl_factor: float
    stop_loss: float
    max_steps: int

    def project(self, delta: Tensor) -> Tensor:
        return delta * min(1.0, self.radius / max(float(delta.norm()), 1e-12))

    def tangent(self, delta: Tensor, direction: Tensor, outward: float) -> Tensor:
        """On the sphere, the part along it of a direction that leads out of the ball."""
        if delta.norm() < 0.999 * self.radius or outward <= 0:
            return direction
        normal = delta / delta.norm()
        return direction - (direction @ normal) * normal


class Problem:
    """One request: its objective, and what was asked of it so far.

    Attributes:
        cost: rows that ran forward, and those that ran backward, so far.
        passes: how often it was asked.
    """

    def __init__(
        self,
        spec: ModelSpec,
        projection: DownProjection,
        hparams: RomeHparams,
        edit: TokenizedEdit,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        self.spec, self.edit, self.hparams = spec, edit, hparams
        self.projection = projection
        self.batch = EditBatch.of([edit])
        self.first: FirstPass = run_first_pass(spec, projection, self.batch)
        [self.keys] = mean_keys(projection, self.batch, self.first)
        suffix = SuffixForward.of(spec, projection, self.batch, self.first)
        self._suffix = suffix if weights is None else suffix.in_bfloat16(weights)
        self.n_contexts = edit.n_contexts
        self.all_rows = tuple(range(self.n_contexts + 1))
        assert self.first.logits is not None
        self.kl_init = self.first.logits[-1].float().log_softmax(-1)
        norm = float(self.keys.value_init.norm())
        self.ball = Ball(
            radius=hparams.clamp_norm_factor * norm,
            lr=hparams.v_lr,
            decay=hparams.v_weight_decay / norm**2,
            kl_factor=hparams.kl_factor,
            stop_loss=hparams.v_stop_loss,
            max_steps=hparams.v_num_grad_steps,
        )
        self._parts: dict[tuple[int, ...], SuffixForward] = {}
        self.cost, self.passes = [0, 0], 0

    @property
    def zero(self) -> Tensor:
        return torch.zeros_like(self.keys.value_init)

    def found(self, at: Evaluation, stop_loss: float | None = None) -> bool:
        """The stop rule, on the rows that ran."""
        return at.said and at.loss < (self.ball.stop_loss if stop_loss is None else stop_loss)

    def __call__(
        self,
        delta: Tensor,
        rows: Sequence[int] | None = None,
        *,
        gradient: bool = True,
        is_thin: bool = False,
    ) -> Evaluation:
        """Losses at a point, of the rows given or of all; one backward gives every gradient.

        ``is_thin``: every other block above the edited one passes on what it is given.
        """
        chosen = self.all_rows if rows is None else tuple(sorted(rows))
        self.passes += 1
        self.cost[0] += len(chosen)
        self.cost[1] += len(chosen) * gradient
        has_kl = chosen[-1] == self.n_contexts
        n, n_said = len(chosen) - has_kl, len(self.edit.said_ids)
        moved = delta.expand(len(chosen), -1).clone().requires_grad_(gradient)
        with self._thinned(is_thin), torch.set_grad_enabled(gradient):
            logits = self._part(chosen).logits(moved).float()
            log_probs = logits.log_softmax(-1)
            read = log_probs[: n * n_said].view(n, n_said, log_probs.shape[-1])
            ids = self.edit.said_ids.expand(n, -1)[..., None]
            row_losses = -read.gather(-1, ids).mean((1, 2))
            kl = (log_probs[-1].exp() * (log_probs[-1] - self.kl_init)).sum() if has_kl else None
            total = row_losses.sum() if kl is None else row_losses.sum() + kl
        gradients = torch.zeros_like(moved)
        if gradient:
            (gradients,) = torch.autograd.grad(total, [moved])
        said = bool((read.detach().argmax(-1) == ids[..., 0]).all())
        norm, ball = float(delta.norm()), self.ball
        kl_gradient = gradients[-1] if has_kl else torch.zeros_like(delta)
        mean = gradients[:n].mean(0) + ball.kl_factor * kl_gradient
        kl_value = 0.0 if kl is None else float(kl.detach())
        return Evaluation(
            delta=delta,
            loss=float(row_losses.detach().mean()) + ball.kl_factor * kl_value + ball.decay * norm,
            gradient=mean + ball.decay * delta / max(norm, 1e-12),
            rows=chosen,
            row_losses=row_losses.detach(),
            row_gradients=gradients[:n],
            kl=kl_value,
            kl_gradient=kl_gradient,
            said=said,
        )

    @contextmanager
    def _thinned(self, is_thin: bool) -> Iterator[None]:
        skipped = self.spec.blocks[self.projection.layer + 2 : -1 : 2] if is_thin else []
        for block in skipped:
            block.forward = _as_given
        try:
            yield
        finally:
            for block in skipped:
                del block.forward

    def _part(self, chosen: tuple[int, ...]) -> SuffixForward:
        if chosen not in self._parts:
            self._parts[chosen] = _of_rows(self._suffix, torch.tensor(chosen))
        return self._parts[chosen]


def _as_given(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The forward of a block that is left out."""
    return hidden_states


def _of_rows(suffix: SuffixForward, rows: Tensor) -> SuffixForward:
    """A suffix forward of some rows, each with an offset of its own."""
    old = suffix.rows
    is_read = torch.isin(old.read_rows, rows)
    number = torch.full((int(old.edit_of_row.shape[0]),), -1)
    number[rows] = torch.arange(len(rows))
    chosen = Rows(
        input_ids=old.input_ids[rows],
        edit_of_row=torch.arange(len(rows)),
        read_rows=number[old.read_rows[is_read]],
        read_columns=old.read_columns[is_read],
    )
    below: Any = suffix.below
    if below is not None:
        below = with_hidden(below, hidden_of(below)[rows])
    return replace(
        suffix,
        rows=chosen,
        split=_split_of(suffix.split, rows),
        below=below,
        attention=tuple((k[rows], v[rows]) for k, v in suffix.attention),
    )


def _split_of(split: PrefixSplit, rows: Tensor) -> PrefixSplit:
    return replace(
        split,
        before=split.before[rows],
        columns=split.columns[rows],
        attention_mask=split.attention_mask[rows],
    )
