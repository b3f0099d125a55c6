"""v*: the output of the edited matrix that makes the model say the target.

An offset ``value_delta`` to the value at the lookup token is optimised through the model (ROME,
section 3.1, step 2; kmeng01/rome, compute_v.py), with the model's weights fixed. The requests of a
batch are searched at once; each has its own offset and its own early stop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import NonFiniteError
from rome_fast.model.nonfinite import where_not_finite
from rome_fast.model.spec import DownProjection, ModelSpec
from rome_fast.value import graph
from rome_fast.value.lbfgs import Lbfgs
from rome_fast.value.objective import Objective
from rome_fast.value.offsets import NO_LOSS, Adam, Offsets
from rome_fast.value.search import Search

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rome_fast.hparams import RomeHparams
    from rome_fast.value.batch import EditBatch
    from rome_fast.value.first_pass import FirstPass

SOLVERS: dict[str, type[Offsets]] = {"adam": Adam, "lbfgs": Lbfgs}

# With a final loss of this much or more, v* makes the target far from certain.
NOT_CONVERGED = 0.5


@dataclass(frozen=True, eq=False)
class Value:
    """The optimised offset: v* = value_init + value_delta.

    Attributes:
        value_delta: [d_value], float32 (float64 for a float64 model).
        losses: the loss before each update, in order; the last one belongs to ``value_delta``, in
            the model's own dtype.
        obstacle: why the whole model was run in every step, or "".
        shortage: that memory did not suffice for all rows at once, or "".
        uncaptured: why a step was not captured as a graph on a GPU, or "".
    """

    value_delta: Tensor
    losses: tuple[float, ...]
    obstacle: str = ""
    shortage: str = ""
    uncaptured: str = ""

    def findings(self) -> list[str]:
        """Remarks for the user about the search."""
        found = [self.shortage] if self.shortage else []
        if self.obstacle:
            found.append(f"v* was searched through the whole model, slowly: {self.obstacle}")
        if self.uncaptured:
            found.append(f"v* was searched without a CUDA graph, more slowly: {self.uncaptured}")
        if self.losses[-1] >= NOT_CONVERGED:
            steps = f"loss {self.losses[-1]:.2f} after {len(self.losses)} steps"
            remedy = "more v_num_grad_steps, a larger clamp_norm_factor or another layer"
            found.append(f"v* did not converge: {steps}; try {remedy}")
        return found


def optimize_values(
    spec: ModelSpec,
    projection: DownProjection,
    batch: EditBatch,
    first: FirstPass,
    value_init: Tensor,
    hparams: RomeHparams,
    weights: dict[str, Tensor] | None = None,
    backend: str = "auto",
) -> list[Value]:
    """Minimise NLL(target) + kl_factor * KL + decay over each request's offset.

    ``v_num_grad_steps`` forwards, one update fewer; a request stops early when its loss is below
    ``v_stop_loss`` (compute_v.py: 0.05) and the target is the likeliest answer in every context
    (``variant="original"``: on the loss alone, as the reference does; a mean can hide the bare
    prompt). After each update the offset is projected to the ball of radius
    ``clamp_norm_factor * ||value_init||``.

    On a GPU a step is one captured graph, unless ``backend`` is "torch" (see ``graph``).

    Args:
        first: the first pass over ``batch``.
        value_init: [n_edits, d_value], what the matrix writes on the bare prompts.
        weights: bfloat16 copies to run instead of the model's own; the offsets, the losses and
            the solver's state stay in float32, and the last losses are of the model's own weights.

    Raises:
        NonFiniteError: a loss became NaN or infinite; names step and layer.
    """
    search = Search(spec, projection, batch, first, weights)
    offsets = offsets_for(value_init, hparams, backend)
    values, uncaptured = None, ""
    if graph.is_wanted(search, backend):
        uncaptured = graph.search_captured(search, Objective(batch, hparams, backend), offsets)
        values = None if uncaptured else _values(search, offsets)
    if values is None:
        objective = Objective(batch, hparams, backend)
        values = _search_step_by_step(search, objective, offsets)
        values = [replace(value, uncaptured=uncaptured) for value in values]
    if weights is None or search.obstacle:
        return values
    assert first.logits is not None  # else there were an obstacle
    objective = Objective(batch, hparams, backend)
    objective.start_from(first.logits)
    return _with_own_losses(search, values, objective, offsets_for(value_init, hparams, backend))


def offsets_for(value_init: Tensor, hparams: RomeHparams, backend: str) -> Offsets:
    """Offsets of zero, with the solver that moves them."""
    return SOLVERS[hparams.solver](value_init, hparams, backend)


def _search_step_by_step(search: Search, objective: Objective, offsets: Offsets) -> list[Value]:
    """Search with the host reading every loss; requests that have stopped leave the batch."""
    active = list(range(len(offsets.deltas)))
    histories: list[list[float]] = [[] for _ in active]
    values: dict[int, Value] = {}
    max_steps = len(offsets.history)
    for step in range(1, max_steps + 1):
        deltas = offsets.deltas.requires_grad_()
        with torch.enable_grad():
            logits = search.logits(deltas)
        losses, gradient, right = objective(logits.detach())
        totals = offsets.totals(losses)
        found = offsets.found(totals, right)
        ends, reached = offsets.ends(totals, found)
        for i, loss in zip(active, reached.tolist(), strict=True):
            histories[i].append(loss)
            if not math.isfinite(loss):
                raise _not_finite(search, deltas.detach(), step, loss)
        ended = [step == max_steps or is_found for is_found in found.tolist()]
        for j, i in enumerate(active):
            if ended[j]:
                values[i] = Value(ends[j].clone(), tuple(histories[i]), search.obstacle)
        if all(ended):
            break
        (gradients,) = torch.autograd.grad(logits, [deltas], gradient)
        offsets.step(gradients, losses, right)
        if any(ended):
            going_on = [j for j, has_ended in enumerate(ended) if not has_ended]
            active = [active[j] for j in going_on]
            for part in (search, objective, offsets):
                part.keep(going_on)
    return [values[i] for i in sorted(values)]


@torch.no_grad()
def _with_own_losses(
    search: Search, values: Sequence[Value], objective: Objective, offsets: Offsets
) -> list[Value]:
    """The values with their last losses in the model's own dtype.

    ``objective`` and ``offsets`` are those of a search that has not begun.
    """
    search.start_again()
    offsets.deltas = torch.stack([value.value_delta for value in values])
    losses, _, _ = objective(search.logits(offsets.deltas))
    totals = offsets.totals(losses.to(offsets.deltas.device)).tolist()
    return [
        replace(value, losses=(*value.losses[:-1], total))
        for value, total in zip(values, totals, strict=True)
    ]


def _values(search: Search, offsets: Offsets) -> list[Value]:
    """The values that a captured search has found, whose losses the host reads only now."""
    values = []
    for delta, column in zip(offsets.deltas, offsets.history.T.tolist(), strict=True):
        losses = tuple(takewhile(lambda loss: loss != NO_LOSS, column))
        if not math.isfinite(losses[-1]):
            raise _not_finite(search, offsets.deltas, len(losses), losses[-1])
        values.append(Value(delta.detach().clone(), losses))
    return values


def _not_finite(search: Search, deltas: Tensor, step: int, loss: float) -> NonFiniteError:
    layer = search.projection.layer
    said = f"the loss became {loss} at step {step} of v* in layer {layer}"
    return NonFiniteError(f"{said}: {_cause(search, deltas, step)}")


def _cause(search: Search, deltas: Tensor, step: int) -> str:
    model = search.spec.model
    if not torch.isfinite(deltas).all():
        dtype = str(model.dtype).removeprefix("torch.")
        return f"the gradient of step {step - 1} overflows {dtype}: load the model in bfloat16"
    moved = "" if step == 1 else "moved by the offset, "
    where = where_not_finite(model, lambda: search.run_whole(deltas))
    return f"{moved}{where}" + (", or lower hparams.v_lr" if moved else "")
