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
    allow_tf32: bool = False,  # a permission, not used here
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
    rounded: Tensor | None = None,  # [d_value, d_key]
) -> None:
    """weight += v u^T, each element rounded once after the product and once after the sum."""
    dtype = compute_dtype(weight.dtype)
    weight.copy_(weight.to(dtype) + torch.outer(v.to(dtype), u.to(dtype)))
    if rounded is not None:
        rounded.copy_(weight)


def rank_one_solve_apply_default(
    weight: Tensor,  # [d_value, d_key]
    factor: Tensor | None,  # [d_key, d_key], lower Cholesky factor of C; None for C = I
    key: Tensor,  # [d_key]
    denominator_key: Tensor,  # [d_key]
    residual: Tensor,  # [d_value]
    min_denominator: float,
    max_norm: float,
    inverse: Tensor | None = None,  # [d_key, d_key], lower triangle of C^-1, instead of factor
    rounded: Tensor | None = None,  # [d_value, d_key]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Solve C w = key and add the update to weight unless it is refused.

    Returns u [d_key], v [d_value], denominator [], update_norm [], applied [].
    """
    dtype = compute_dtype(weight.dtype)
    w = key.double()
    if factor is not None:
        w = torch.cholesky_solve(key.to(factor.dtype)[:, None], factor)[:, 0].double()
    elif inverse is not None:
        lower = inverse.double().tril()
        w = lower @ w + lower.tril(-1).T @ w
    u = (w / w.norm()).to(dtype)
    denominator = denominator_key.double() @ u.double()
    v = (residual.double() / denominator).to(dtype)
    update_norm = v.double().norm()
    finite = torch.stack([x.isfinite().all() for x in (u, v, denominator, update_norm)]).all()
    scale = (key.double() @ u.double()).abs()
    applied = finite & (denominator.abs() >= min_denominator * scale) & (update_norm <= max_norm)
    edited = weight.to(dtype) + torch.outer(v, u)
    weight.copy_(torch.where(applied, edited.to(weight.dtype), weight))
    if rounded is not None:
        rounded.copy_(torch.where(applied, weight.to(rounded.dtype), rounded))
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


def value_loss_default(
    logits: Tensor,  # [n_reads + n_edits, vocabulary]
    target_ids: Tensor,  # [n_reads]
    edit_of_read: Tensor,  # [n_reads]
    log_probs_init: Tensor | None,  # [n_edits, vocabulary]
    kl_factor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, their gradient by the logits, whether targets are likeliest, the KL's reference."""
    logits, dtype = logits.to(compute_dtype(logits.dtype)), logits.dtype
    n_reads = len(target_ids)
    probs, now = logits.softmax(-1), logits[n_reads:].log_softmax(-1)
    init = now if log_probs_init is None else log_probs_init
    at_target = torch.arange(n_reads, device=logits.device), target_ids
    per_edit = probs.new_zeros(len(now) + 1)  # the last is nobody's
    counts = per_edit.index_add(0, edit_of_read, probs.new_ones(n_reads))
    # max also for its indices: what argmax gives, in 0.6 of its time on a CPU. The reads' only
    # logarithm is that of the largest probability, 1 / sum of e^(x - max); far from 0, adding it to
    # the largest logit would lose digits.
    largest, likeliest = logits[:n_reads].max(-1)
    of_reads = (largest - logits[at_target]) - probs[at_target[0], likeliest].log()
    nll = (per_edit.index_add(0, edit_of_read, of_reads) / counts)[:-1]
    wrong = (likeliest != target_ids).to(probs.dtype)
    right = (per_edit.index_add(0, edit_of_read, wrong) == 0)[:-1]
    ratio = (now - init).masked_fill_(probs[n_reads:] == 0, 0)  # a token of probability 0
    kl = (probs[n_reads:] * ratio).sum(-1)
    kept = now if log_probs_init is None else now[:0].clone()
    # p - 1 at the target, shared by the reads of an edit; and p (log p/q - KL).
    shares = 1 / counts
    shares[-1:].zero_()
    share = shares[edit_of_read]
    probs[:n_reads].masked_fill_((share == 0)[:, None], 0)
    probs[:n_reads].mul_(share[:, None]).index_put_(at_target, -share, accumulate=True)
    probs[n_reads:].mul_(kl_factor * (ratio - kl[:, None]))
    return nll + kl_factor * kl, probs.to(dtype), right, kept


def value_step_default(
    deltas: Tensor,  # [n_edits, d_value]
    mean: Tensor,
    square: Tensor,
    n_steps: Tensor,  # []
    history: Tensor,  # [max_steps, n_edits]
    active: Tensor,  # [n_edits]
    gradients: Tensor,
    losses: Tensor,  # [n_edits]
    right: Tensor,
    radii: Tensor,
    decays: Tensor,
    lr: float,
    stop_loss: float,
    mean_loss_suffices: bool,
) -> None:
    """Record the losses, stop what is found, move the rest by Adam and back into its ball."""
    norms = deltas.norm(dim=1)
    totals = losses + decays * norms
    row = torch.arange(len(history), device=history.device)[:, None] == n_steps
    history.copy_(torch.where(row & active, totals, history))
    found = totals < stop_loss
    if not mean_loss_suffices:
        found = found & right
    active.logical_and_(~found & totals.isfinite() & (n_steps + 1 < len(history)))
    n_steps.add_(1)
    # The norm's gradient is 0 at 0.
    unit = deltas / torch.where(norms > 0, norms, 1)[:, None]
    gradients = gradients + decays[:, None] * unit
    new_mean = mean.lerp(gradients, 0.1)
    new_square = (square * 0.999).addcmul_(gradients, gradients, value=0.001)
    t = n_steps.double()  # in float32, 1 - 0.999 is off by 1e-5
    scale = (new_square / (1 - 0.999**t)).sqrt_().add_(1e-8)
    moved = deltas - lr / (1 - 0.9**t) * new_mean / scale
    lengths = moved.norm(dim=1)
    shrink = torch.where(lengths > radii, radii / lengths, 1)
    moved = moved * shrink[:, None]
    for old, new in (deltas, moved), (mean, new_mean), (square, new_square):
        old.copy_(torch.where(active[:, None], new, old))


torch.library.register_kernel("rome_fast::second_moment_update_", None)(
    second_moment_update_default
)
torch.library.register_kernel("rome_fast::rank_one_update_", None)(rank_one_update_default)
torch.library.register_kernel("rome_fast::rank_one_solve_apply_", None)(
    rank_one_solve_apply_default
)
torch.library.register_kernel("rome_fast::cholesky_update_", None)(cholesky_update_default)
torch.library.register_kernel("rome_fast::value_loss", None)(value_loss_default)
torch.library.register_kernel("rome_fast::value_step_", None)(value_step_default)
