"""(u, v): which keys the update is solved for, and the guarded write.

docs/derivation.md has the algebra. Four variants, one rank-one form: u from a numerator key,
divided by what the denominator key says of it, times a residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast import ops
from rome_fast.errors import EditRejectedError, InvalidArgumentError, NonFiniteError
from rome_fast.types import RankOneUpdate

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.key import Keys
    from rome_fast.models import DownProjection
    from rome_fast.moments import SecondMoment

# |denominator_key . C^-1 key| below this share of |key . C^-1 key| is refused: the update would
# be a thousand times larger than one with consistent keys, the known cause of model collapse.
MIN_DENOMINATOR = 1e-3


@dataclass(frozen=True)
class Constraint:
    """What the update must do: move the matrix' output by ``residual`` on the denominator key.

    Attributes:
        key, denominator_key: [d_key]; u is C^-1 key scaled to unit length.
        residual: [d_value].
    """

    key: Tensor
    denominator_key: Tensor
    residual: Tensor


def build_constraint(
    variant: str, keys: Keys, value_delta: Tensor, second_moment: SecondMoment | None
) -> Constraint:
    """The keys and the residual of a variant.

    ``original``: kmeng01/rome, mean key above and prompt key below. ``mean_key``: r-ROME, the
    mean key in both. ``prompt_key``: p-ROME. ``both_keys``: the output moves by value_delta on
    the prompt key and on the mean key; with equal residuals that is still one rank-one update.
    """
    if variant == "original":
        return Constraint(keys.key, keys.prompt_key, value_delta)
    if variant == "mean_key":
        # v* is one point: the mean output is carried to where the bare prompt's is.
        residual = keys.value_init + value_delta - keys.mean_value
        return Constraint(keys.key, keys.key, residual)
    if variant == "prompt_key":
        return Constraint(keys.prompt_key, keys.prompt_key, value_delta)
    if variant == "both_keys":
        both = torch.stack([keys.prompt_key, keys.key])
        return Constraint(_joint_key(both, second_moment), keys.prompt_key, value_delta)
    raise InvalidArgumentError(f"variant {variant!r} is unknown")


def _joint_key(keys: Tensor, second_moment: SecondMoment | None) -> Tensor:
    """The mix a of keys [m, d_key] for which C^-1 (K a) . k_i is the same for every i.

    From the joint equality constraint dW = R (K^T C^-1 K)^-1 K^T C^-1 with equal columns in R
    (EMMET): a ~ (K^T C^-1 K)^-1 1, scaled to sum 1. A pseudo-inverse, so that equal keys are no
    special case.

    Raises:
        EditRejectedError: the keys are parallel but of different length: one direction would have
            to answer twice.
    """
    wide = keys.double()
    white = wide if second_moment is None else second_moment.whiten(wide).to(wide.device)
    gram = white @ white.T
    mix = torch.linalg.pinv(gram, rtol=1e-9, hermitian=True).sum(1)
    # The update's size in the metric of C, against that of an update for the shorter key alone.
    cost = float((mix.sum() * gram.diagonal().min()).sqrt())
    if not cost < 1 / MIN_DENOMINATOR:
        raise EditRejectedError(
            f"no update meets both keys: it would be {cost:.3g} times that of one key; use "
            "variant='prompt_key', or other context_templates"
        )
    return (mix / mix.sum() @ wide).to(keys.dtype)


def apply_update_(
    projection: DownProjection,
    constraint: Constraint,
    second_moment: SecondMoment | None,
    backend: str,
) -> RankOneUpdate:
    """Solve and write the update into the weight, in place; returns what was written.

    Raises:
        EditRejectedError: the update is not finite, or its denominator is too small; nothing was
            written.
        NonFiniteError: the sum overflows the weight's dtype; the caller puts the weight back.
    """
    weight = projection.weight
    factor = None if second_moment is None else second_moment.factor().to(weight.device)
    key, denominator_key, residual = (
        x.to(weight.device)
        for x in (constraint.key, constraint.denominator_key, constraint.residual)
    )
    u, v, denominator, update_norm, applied = ops.rank_one_solve_apply_(
        weight,
        factor,
        key,
        denominator_key,
        residual,
        weight_layout=projection.weight_layout,
        min_denominator=MIN_DENOMINATOR,
        backend=backend,
    )
    if not applied:
        raise EditRejectedError(
            f"the update of {projection.name} was refused: denominator {float(denominator):.3g}, "
            f"norm {float(update_norm):.3g}. The mean key and the prompt key disagree, or the "
            "residual is not finite; use the default variant, or more keys in second_moment"
        )
    if not torch.isfinite(weight).all():
        raise NonFiniteError(
            f"{projection.name}.weight overflows {weight.dtype} with an update of norm "
            f"{float(update_norm):.3g}: load the model in float32 or bfloat16"
        )
    return RankOneUpdate(u, v, projection.weight_layout)
