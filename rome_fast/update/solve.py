"""(u, v): which keys the update is solved for, and the guarded write.

docs/derivation.md has the algebra. Four variants, one rank-one form: u is C^-1 of a numerator key
at unit length, v a residual divided by the dot product of u with a denominator key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from rome_fast import ops
from rome_fast.errors import EditRejectedError, InvalidArgumentError
from rome_fast.types import RankOneUpdate

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.update.undo import WeightHistory
    from rome_fast.value.key import Keys

# |denominator_key . C^-1 key| below this share of |key . C^-1 key| is refused: the update would
# be a thousand times larger than one with consistent keys, the known cause of model collapse.
MIN_DENOMINATOR = 1e-3


class Metric(Protocol):
    """The metric of updates: C, or C plus the keys of earlier edits. None stands for I."""

    def factor(self) -> Tensor:
        """Its lower Cholesky factor L, [d_key, d_key]."""

    def whiten(self, keys: Tensor) -> Tensor:
        """L^-1 k for keys [n, d_key], float64."""

    def solve(self, keys: Tensor) -> Tensor:
        """C^-1 k for keys [d_key] or [n, d_key], float64."""


@dataclass(frozen=True)
class Constraint:
    """What an update must do: move the matrix' output by ``residual`` on the denominator keys.

    Attributes:
        keys, denominator_keys: [m, d_key], m = 2 for ``both_keys``, else 1; the update is spanned
            by C^-1 keys.
        residual: [d_value].
    """

    keys: Tensor
    denominator_keys: Tensor
    residual: Tensor


def build_constraint(variant: str, keys: Keys, value_delta: Tensor) -> Constraint:
    """The keys and the residual of a variant.

    ``original``: kmeng01/rome, mean key in the numerator and prompt key in the denominator.
    ``mean_key``: r-ROME, the mean key in both. ``prompt_key``: p-ROME. ``both_keys``: the output
    moves by value_delta on the prompt key and on the mean key; with equal residuals that is still
    one rank-one update.
    """
    prompt, mean = keys.prompt_key[None], keys.key[None]
    if variant == "original":
        return Constraint(mean, prompt, value_delta)
    if variant == "mean_key":
        # v* is one point: the residual moves the mean output there from where it is now.
        return Constraint(mean, mean, keys.value_init + value_delta - keys.mean_value)
    if variant == "prompt_key":
        return Constraint(prompt, prompt, value_delta)
    if variant == "both_keys":
        both = torch.cat([prompt, mean])
        return Constraint(both, both, value_delta)
    raise InvalidArgumentError(f"variant {variant!r} is unknown")


def mix_keys(constraints: Sequence[Constraint], metric: Metric | None) -> tuple[Tensor, Tensor]:
    """The keys a_i for which D = sum of residual_i (C^-1 a_i)^T meets all constraints.

    D is the least such change in the metric of C where keys and denominator keys are the same
    (EMMET's closed form, Gupta et al. 2024: D = R (K^T C^-1 K)^-1 K^T C^-1). The residual is the
    same for all keys of a request, so each request has one mix of all keys. The pseudo-inverse
    handles equal keys of one request too.

    Returns:
        a [n, d_key], float64, and a_i . C^-1 a_i [n].

    Raises:
        EditRejectedError: an update would be a thousand times larger than one for a key alone.
    """
    keys = torch.cat([constraint.keys for constraint in constraints]).double()
    white = whiten(keys, metric)
    white_below = white
    if any(c.denominator_keys is not c.keys for c in constraints):
        white_below = whiten(torch.cat([c.denominator_keys for c in constraints]), metric)
    sizes = [len(constraint.keys) for constraint in constraints]
    inverse = torch.linalg.pinv(white @ white_below.T, rtol=1e-9)
    mixes = torch.stack([part.sum(0) for part in inverse.split(sizes)])
    lengths = (mixes @ white).norm(dim=1)
    shortest = torch.stack([part.norm(dim=1).min() for part in white_below.split(sizes)])
    cost = float((lengths * shortest).max())
    if not cost < 1 / MIN_DENOMINATOR:
        raise EditRejectedError(
            f"no update meets all keys: it would be {cost:.3g} times that of one key; use "
            "variant='prompt_key', other context_templates, or fewer requests at once",
            cost=cost,
        )
    return mixes @ keys, lengths**2


def whiten(keys: Tensor, metric: Metric | None) -> Tensor:
    """Keys [n, d_key] in coordinates in which C is the identity; float64, on their device."""
    wide = keys.double()
    return wide if metric is None else metric.whiten(wide).to(wide.device)


def apply_update_(
    history: WeightHistory, constraint: Constraint, metric: Metric | None
) -> RankOneUpdate:
    """Solve and write the update into the weight, in place; returns what was written.

    Raises:
        EditRejectedError: the update is not finite, or its denominator is too small; nothing was
            written.
        NonFiniteError: the sum overflows the weight's dtype; the caller puts the weight back.
    """
    solution = solve_and_apply_(history, constraint, metric)
    if not solution.applied:
        raise solution.refusal(history.projection.name)
    history.record(solution.update)
    return solution.update


@dataclass(frozen=True)
class Solution:
    """The update that the op has solved, and whether it has added it to the weight's sum.

    Attributes:
        denominator: dot product of the denominator key with the unit vector u.
        is_sound: whether it is finite and its denominator large enough; if so only its norm can
            have been the reason not to apply it.
    """

    update: RankOneUpdate
    denominator: float
    norm: float
    applied: bool
    is_sound: bool

    def refusal(self, name: str) -> EditRejectedError:
        """The error for an update that was refused for a reason other than its norm."""
        return EditRejectedError(
            f"the update of {name} was refused: denominator {self.denominator:.3g}, norm "
            f"{self.norm:.3g}. The mean key and the prompt key disagree, or the residual is not "
            "finite; use the default variant, or more keys in second_moment",
            norm=self.norm,
            denominator=self.denominator,
        )


def solve_and_apply_(
    history: WeightHistory,
    constraint: Constraint,
    metric: Metric | None,
    max_norm: float = math.inf,
) -> Solution:
    """One constraint's update, in ``history``'s weight unless it is refused; not recorded."""
    device = history.weight.device
    key, denominator_key = constraint.keys[0], constraint.denominator_keys[0]
    if len(constraint.keys) > 1:
        mixed, squares = mix_keys([constraint], metric)
        key = (mixed[0] / squares[0]).to(key.dtype)  # the op's guard compares it with the other
    u, v, denominator, norm, applied = ops.rank_one_solve_apply_(
        history.sum,
        None if metric is None else metric.factor().to(device),
        key.to(device),
        denominator_key.to(device),
        constraint.residual.to(device),
        weight_layout=history.projection.weight_layout,
        min_denominator=MIN_DENOMINATOR,
        max_norm=max_norm,
        rounded=history.rounded,
        backend=history.backend,
    )
    update = RankOneUpdate(u, v, history.projection.weight_layout)
    least = MIN_DENOMINATOR * (key.to(u).double() @ u.double()).abs()
    is_sound = norm.isfinite() & (denominator.abs() >= least)
    return Solution(update, float(denominator), float(norm), bool(applied), bool(is_sound))
