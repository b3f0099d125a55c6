"""Sum of k k^T -> Cholesky factor of the damped C, within 16 d^2 bytes beside the sum.

Only the lower triangle of a sum is ever read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rome_fast.errors import SecondMomentError, SecondMomentWarning, warn
from rome_fast.moment.sums import MomentSum

if TYPE_CHECKING:
    from torch import Tensor

_JITTERS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
_ROWS_AT_ONCE = 256


def automatic_ridge(moment: MomentSum) -> float:
    """Shrinkage of Chen et al. 2010 (OAS, eq. 23), as a share of the mean eigenvalue.

    Towards the scaled identity: about (1 + effective rank) / count, so it vanishes as keys are
    added.
    """
    d, count = moment.d_key, moment.count
    trace, squares = _trace_and_squares(moment)
    spread = (count + 1 - 2 / d) * (squares - trace**2 / d)
    excess = (1 - 2 / d) * squares + trace**2
    share = min(excess / spread, 0.5) if spread > 0 else 0.5
    return share / (1 - share)


def factorise(moment: MomentSum, ridge: float, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Lower factor of the damped C, [d, d], and the jitter that it took.

    Args:
        ridge: the damping, as a share of the mean eigenvalue.

    Raises:
        SecondMomentError: C is zero, not finite, or of too low a rank.
    """
    trace, squares = _trace_and_squares(moment)
    if not 0 < squares < float("inf"):
        raise SecondMomentError(
            f"second moment ({moment.source}) is zero or not finite: mean diagonal "
            f"{trace / moment.d_key:.3g}"
        )
    scale = trace / moment.d_key
    damped = moment.exact_sum(dtype).div_(moment.count)
    diagonal = damped.diagonal().clone()
    # No jitter makes up for directions that were never seen.
    for jitter in (0.0, *(_JITTERS if moment.count >= moment.d_key else ())):
        damped.diagonal().copy_(diagonal).add_((ridge + jitter) * scale)
        factor, failed = torch.linalg.cholesky_ex(damped)
        # A pivot at rounding level means a missing rank, though LAPACK accepts it.
        pivot = float(factor.diagonal().square().min())
        if not int(failed) and pivot > 500 * torch.finfo(dtype).eps * scale:
            if jitter:
                warn(
                    f"second moment ({moment.source}) is singular to rounding: {jitter:g} of its "
                    "mean eigenvalue was added; set damping= to choose a ridge yourself",
                    SecondMomentWarning,
                )
            return factor, jitter
    damped.diagonal().copy_(diagonal)
    raise SecondMomentError(_why_singular(moment, damped))


@torch.no_grad()
def whiten_with(factor: Tensor, keys: Tensor) -> Tensor:
    """L^-1 k with C = L L^T, for keys [n, d]; float64, same shape."""
    columns = keys.to(factor).T
    return torch.linalg.solve_triangular(factor, columns, upper=False).T.double()


@torch.no_grad()
def solve_with(factor: Tensor, keys: Tensor) -> Tensor:
    """C^-1 k with C = L L^T, for keys [d] or [n, d]; float64, same shape."""
    columns = keys.to(factor).reshape(-1, len(factor)).T
    # Same bits as torch.cholesky_solve, which copies the factor: ten times slower for one key.
    white = torch.linalg.solve_triangular(factor, columns, upper=False)
    solved = torch.linalg.solve_triangular(factor.T, white, upper=True)
    return solved.T.reshape(keys.shape).double()


def _trace_and_squares(moment: MomentSum) -> tuple[float, float]:
    """tr(C) and tr(C^2), float64, a few rows at a time."""
    trace = squares = 0.0
    for first in range(0, moment.d_key, _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        part = moment.moment_sum[rows].to(torch.float64, copy=True)
        if moment.compensation is not None:
            part += moment.compensation[rows]
        part.div_(moment.count)
        diagonal = part.diagonal(first)
        trace += float(diagonal.sum())
        squares += 2 * float(part.tril(first).square().sum()) - float(diagonal.square().sum())
    return trace, squares


def _why_singular(moment: MomentSum, lower: Tensor) -> str:
    if moment.count >= moment.d_key:
        return (
            f"second moment ({moment.source}) of {moment.count:,} keys is not positive definite, "
            "as a mean of k k^T is: check where it comes from, or set damping= to a ridge"
        )
    values = torch.linalg.eigvalsh(lower)
    # Below this an eigenvalue is a rounding error of the sum.
    noise = torch.finfo(moment.moment_sum.dtype).eps * moment.d_key * values[-1]
    rank = min(moment.count, int((values > noise).sum()))
    return (
        f"second moment ({moment.source}) has rank {rank} of {moment.d_key} from "
        f"{moment.count:,} keys: collect {5 * moment.d_key:,} keys or more, or set damping='auto'"
    )
