"""Pure-torch kernels of every op: the fallback on any device, and the oracle of the tests.

Kept short and obvious, never optimised. Weights are [d_value, d_key] views here (see `_schema`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rome_fast.ops._schema import compute_dtype


def second_moment_update_default(
    moment_sum: Tensor,  # [d, d], lower triangle written
    keys: Tensor,  # [n, d]
    mask: Tensor | None,  # [n] bool
    compensation: Tensor | None = None,  # [d, d], lower triangle written
) -> None:
    """moment_sum (+ compensation) += tril(keys^T keys) over the rows that mask keeps."""
    rows = keys.to(moment_sum.dtype)
    if mask is not None:
        rows = rows[mask]
    product = (rows.T @ rows).tril_()
    if compensation is None:
        moment_sum.add_(product)
        return
    # Two-sum (Knuth 1969): total + error is exactly moment_sum + increment.
    increment = product + compensation
    total = moment_sum + increment
    rounded = total - moment_sum
    error = (moment_sum - (total - rounded)) + (increment - rounded)
    lower = torch.ones_like(moment_sum, dtype=torch.bool).tril_()
    moment_sum.copy_(torch.where(lower, total, moment_sum))
    compensation.copy_(torch.where(lower, error, compensation))


def rank_one_update_default(
    weight: Tensor,  # [d_value, d_key]
    u: Tensor,  # [d_key]
    v: Tensor,  # [d_value]
) -> None:
    """weight += v u^T, each element rounded once after the product and once after the sum."""
    dtype = compute_dtype(weight.dtype)
    weight.copy_(weight.to(dtype) + torch.outer(v.to(dtype), u.to(dtype)))


def rank_one_solve_apply_default(
    weight: Tensor,  # [d_value, d_key]
    factor: Tensor | None,  # [d_key, d_key], lower Cholesky factor of C; None for C = I
    key: Tensor,  # [d_key]
    denominator_key: Tensor,  # [d_key]
    residual: Tensor,  # [d_value]
    min_denominator: float,
    max_norm: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Solve C w = key and add the update to weight unless it is refused.

    Returns u [d_key], v [d_value], denominator [], update_norm [], applied [].
    """
    dtype = compute_dtype(weight.dtype)
    w = key.double()
    if factor is not None:
        w = torch.cholesky_solve(key.to(factor.dtype)[:, None], factor)[:, 0].double()
    u = (w / w.norm()).to(dtype)
    denominator = denominator_key.double() @ u.double()
    v = (residual.double() / denominator).to(dtype)
    update_norm = v.double().norm()
    finite = torch.stack([x.isfinite().all() for x in (u, v, denominator, update_norm)]).all()
    scale = (key.double() @ u.double()).abs()
    applied = finite & (denominator.abs() >= min_denominator * scale) & (update_norm <= max_norm)
    edited = weight.to(dtype) + torch.outer(v, u)
    weight.copy_(torch.where(applied, edited.to(weight.dtype), weight))
    return u, v, denominator, update_norm, applied


def cholesky_update_default(
    factor: Tensor,  # [d, d], lower triangle read and written
    vector: Tensor,  # [d]
    downdate: bool,
) -> Tensor:
    """L <- L M, where M M^T = I +- a a^T and a = L^-1 vector; returns applied []."""
    sign = -1.0 if downdate else 1.0
    lower = factor.double().tril()
    a = torch.linalg.solve_triangular(lower, vector.double()[:, None], upper=False)[:, 0]
    # t_j, the determinant of the leading block of I +- a a^T, and t_(j-1).
    t = 1.0 + sign * a.square().cumsum(0)
    previous = torch.cat([t.new_ones(1), t])[:-1]
    # after[i, j] = sum over k > j of L[i, k] a_k
    after = (lower * a).flip(1).cumsum(1).flip(1)
    after = torch.cat([after, after.new_zeros(len(after), 1)], 1)[:, 1:]
    updated = lower * (t / previous).sqrt() + sign * after * (a / t.sqrt() / previous.sqrt())
    positive = t > 64 * torch.finfo(factor.dtype).eps
    applied = (positive & t.isfinite() & lower.diagonal().isfinite()).all()
    write = applied & torch.ones_like(factor, dtype=torch.bool).tril_()
    factor.copy_(torch.where(write, updated.to(factor.dtype), factor))
    return applied


torch.library.register_kernel("rome_fast::second_moment_update_", None)(
    second_moment_update_default
)
torch.library.register_kernel("rome_fast::rank_one_update_", None)(rank_one_update_default)
torch.library.register_kernel("rome_fast::rank_one_solve_apply_", None)(
    rank_one_solve_apply_default
)
torch.library.register_kernel("rome_fast::cholesky_update_", None)(cholesky_update_default)
