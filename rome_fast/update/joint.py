"""Several edits solved at once: one least change of the matrix that meets all their constraints.

It is the sum of one rank-one update per request; for a single request it is ROME's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import EditRejectedError
from rome_fast.types import RankOneUpdate
from rome_fast.update.solve import Constraint, Metric, apply_update_, mix_keys, whiten

if TYPE_CHECKING:
    from rome_fast.model.spec import DownProjection
    from rome_fast.update.undo import WeightHistory

# A request whose key is this close to the span of those before it (sine of the angle, in the
# metric of C^-1) is not solved together with them: their residuals would be played off against
# each other. Two requests about one subject are such a case.
MIN_SINE = 0.1


def count_independent(constraints: Sequence[Constraint], metric: Metric | None) -> int:
    """How many leading constraints have keys independent of those before them; at least 1."""
    if len(constraints) == 1:
        return 1
    keys = torch.stack([constraint.denominator_keys[0] for constraint in constraints])
    white = whiten(keys, metric)
    basis = torch.zeros(0, white.shape[1], dtype=white.dtype, device=white.device)
    for number, key in enumerate(white / white.norm(dim=1, keepdim=True)):
        # Gram-Schmidt, twice, so that rounding leaves no component along the basis.
        rest = key - (basis @ key) @ basis
        rest = rest - (basis @ rest) @ basis
        if rest.norm() < MIN_SINE:
            return number
        basis = torch.cat([basis, rest[None] / rest.norm()])
    return len(constraints)


def apply_updates_(
    history: WeightHistory, constraints: Sequence[Constraint], metric: Metric | None
) -> list[RankOneUpdate]:
    """Solve all constraints together and write the updates, in place, one per request.

    A single constraint takes the fused op.

    Raises:
        EditRejectedError: an update is not finite, or a thousand times larger than one for its
            request alone; nothing was written.
        NonFiniteError: the sum overflows the weight's dtype; the caller puts the weight back.
    """
    if len(constraints) == 1:
        return [apply_update_(history, constraints[0], metric)]
    updates = solve_updates(history.projection, constraints, metric)
    for update in updates:
        history.add(update)
    return updates


def solve_updates(
    projection: DownProjection, constraints: Sequence[Constraint], metric: Metric | None
) -> list[RankOneUpdate]:
    """The updates, one per request, that meet all constraints together; nothing is written.

    Raises:
        EditRejectedError: as ``apply_updates_``.
    """
    weight = projection.weight
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    mixed, _ = mix_keys(constraints, metric)
    solved = mixed if metric is None else metric.solve(mixed)
    updates = []
    for row, constraint in zip(solved, constraints, strict=True):
        length = row.norm()
        parts = row / length, constraint.residual.to(row) * length
        if not all(torch.isfinite(x).all() for x in parts):
            raise EditRejectedError(f"the joint update of {projection.name} is not finite")
        u, v = (x.to(weight.device, dtype) for x in parts)
        updates.append(RankOneUpdate(u, v, projection.weight_layout))
    return updates
