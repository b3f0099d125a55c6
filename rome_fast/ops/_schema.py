"""Schemas, fakes and checks of the ops: what an argument may be is written here and nowhere else.

Every op exists from the moment this file is imported. `_default` gives each a pure-torch kernel;
a native library, where one is loaded, overrides the dispatch keys it knows.
Below the Python functions a weight is always seen as [d_value, d_key]: the other layout is its
transposed view, so the ops know strides and no layouts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rome_fast.errors import InvalidArgumentError

WEIGHT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALF_DTYPES = (torch.bfloat16, torch.float16)
KEY_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ACCUMULATOR_DTYPES = (torch.float64, torch.float32)

torch.library.define(
    "rome_fast::second_moment_update_",
    "(Tensor(a!) moment_sum, Tensor keys, Tensor? mask, Tensor(b!)? compensation=None, "
    "bool allow_tf32=False) -> ()",
)
torch.library.define(
    "rome_fast::rank_one_update_",
    "(Tensor(a!) weight, Tensor u, Tensor v, Tensor(b!)? rounded=None) -> ()",
)
torch.library.define(
    "rome_fast::rank_one_solve_apply_",
    "(Tensor(a!) weight, Tensor? factor, Tensor key, Tensor denominator_key, Tensor residual, "
    "float min_denominator, float max_norm, Tensor? inverse=None, Tensor(b!)? rounded=None) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "rome_fast::cholesky_update_",
    "(Tensor(a!) factor, Tensor vector, bool downdate) -> Tensor",
)
torch.library.define(
    "rome_fast::value_loss",
    "(Tensor logits, Tensor target_ids, Tensor edit_of_read, Tensor? log_probs_init, "
    "float kl_factor) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "rome_fast::value_step_",
    "(Tensor(a!) deltas, Tensor(b!) mean, Tensor(c!) square, Tensor(d!) n_steps, "
    "Tensor(e!) history, Tensor(f!) active, Tensor gradients, Tensor losses, Tensor right, "
    "Tensor radii, Tensor decays, float lr, float stop_loss, bool mean_loss_suffices) -> ()",
)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype an update is computed in: float64 for float64 weights, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_second_moment_update(
    moment_sum: Tensor,  # [d, d]
    keys: Tensor,  # [n, d]
    mask: Tensor | None,  # [n] bool
    compensation: Tensor | None,  # [d, d]
) -> None:
    """Raise InvalidArgumentError unless the arguments fit together."""
    _require_dtype("moment_sum", moment_sum, ACCUMULATOR_DTYPES)
    _require_dtype("keys", keys, KEY_DTYPES)
    _require_dim("keys", keys, 2)
    _require_shape("moment_sum", moment_sum, (keys.shape[1], keys.shape[1]))
    _require_writable("moment_sum", moment_sum)
    _require_same_device("keys", keys, "moment_sum", moment_sum)
    if keys.dtype == torch.float64 and moment_sum.dtype != torch.float64:
        raise InvalidArgumentError("moment_sum must be float64 for float64 keys, got float32")
    if mask is not None:
        _require_dtype("mask", mask, (torch.bool,))
        _require_shape("mask", mask, (keys.shape[0],))
        _require_same_device("mask", mask, "moment_sum", moment_sum)
    if compensation is not None:
        _require_dtype("compensation", compensation, (torch.float32,))
        if moment_sum.dtype != torch.float32:
            raise InvalidArgumentError("compensation needs a float32 moment_sum, got float64")
        _require_shape("compensation", compensation, (keys.shape[1], keys.shape[1]))
        _require_writable("compensation", compensation)
        _require_same_device("compensation", compensation, "moment_sum", moment_sum)
        if compensation is moment_sum:
            raise InvalidArgumentError("compensation is moment_sum: it must be a matrix of its own")


def check_rank_one_update(
    weight: Tensor,  # [d_value, d_key]
    u: Tensor,  # [d_key]
    v: Tensor,  # [d_value]
    rounded: Tensor | None,  # [d_value, d_key]
) -> None:
    """Raise InvalidArgumentError unless v u^T can be added to weight."""
    _require_weight(weight)
    _require_rounded(rounded, weight)
    _require_vector("u", u, weight.shape[1], "weight", weight)
    _require_vector("v", v, weight.shape[0], "weight", weight)


def check_rank_one_solve_apply(
    weight: Tensor,  # [d_value, d_key]
    factor: Tensor | None,  # [d_key, d_key]
    key: Tensor,  # [d_key]
    denominator_key: Tensor,  # [d_key]
    residual: Tensor,  # [d_value]
    min_denominator: float,
    max_norm: float,
    inverse: Tensor | None,  # [d_key, d_key]
    rounded: Tensor | None,  # [d_value, d_key]
) -> None:
    """Raise InvalidArgumentError unless the solve and the update are well formed."""
    _require_weight(weight)
    _require_rounded(rounded, weight)
    d_value, d_key = weight.shape
    if factor is not None and inverse is not None:
        raise InvalidArgumentError("factor and inverse are both given: the update needs one")
    for name, matrix in (("factor", factor), ("inverse", inverse)):
        if matrix is not None:
            _require_dtype(name, matrix, ACCUMULATOR_DTYPES)
            _require_shape(name, matrix, (d_key, d_key))
            _require_same_device(name, matrix, "weight", weight)
    _require_vector("key", key, d_key, "weight", weight)
    _require_vector("denominator_key", denominator_key, d_key, "weight", weight)
    _require_vector("residual", residual, d_value, "weight", weight)
    if not (math.isfinite(min_denominator) and min_denominator >= 0):
        raise InvalidArgumentError(
            f"min_denominator must be finite and >= 0, got {min_denominator}"
        )
    if not max_norm >= 0:
        raise InvalidArgumentError(f"max_norm must be >= 0, got {max_norm}")


def check_cholesky_update(
    factor: Tensor,  # [d, d]
    vector: Tensor,  # [d]
) -> None:
    """Raise InvalidArgumentError unless vector fits a factor that can be written into."""
    _require_dtype("factor", factor, ACCUMULATOR_DTYPES)
    _require_dim("factor", factor, 2)
    _require_shape("factor", factor, (factor.shape[1], factor.shape[1]))
    _require_writable("factor", factor)
    _require_vector("vector", vector, factor.shape[1], "factor", factor)


def check_value_loss(
    logits: Tensor,  # [n_reads + n_edits, vocabulary]
    target_ids: Tensor,  # [n_reads]
    edit_of_read: Tensor,  # [n_reads]
    log_probs_init: Tensor | None,  # [n_edits, vocabulary]
    kl_factor: float,
) -> None:
    """Raise InvalidArgumentError unless the rows are those of reads and of edits."""
    _require_dtype("logits", logits, WEIGHT_DTYPES)
    _require_dim("logits", logits, 2)
    _require_dim("target_ids", target_ids, 1)
    n_edits = logits.shape[0] - target_ids.shape[0]
    if n_edits < 1:
        raise InvalidArgumentError(
            f"logits must have a row for each of {target_ids.shape[0]} target_ids and for each "
            f"edit, got {logits.shape[0]} rows"
        )
    _require_shape("edit_of_read", edit_of_read, (target_ids.shape[0],))
    for name, ids in ("target_ids", target_ids), ("edit_of_read", edit_of_read):
        _require_dtype(name, ids, (torch.int64,))
        _require_same_device(name, ids, "logits", logits)
    if log_probs_init is not None:
        _require_dtype("log_probs_init", log_probs_init, (compute_dtype(logits.dtype),))
        _require_shape("log_probs_init", log_probs_init, (n_edits, logits.shape[1]))
        _require_same_device("log_probs_init", log_probs_init, "logits", logits)
    if not math.isfinite(kl_factor):
        raise InvalidArgumentError(f"kl_factor must be finite, got {kl_factor}")


def check_value_step(
    deltas: Tensor,  # [n_edits, d_value]
    mean: Tensor,
    square: Tensor,
    n_steps: Tensor,  # []
    history: Tensor,  # [max_steps, n_edits]
    active: Tensor,  # [n_edits]
    gradients: Tensor,  # [n_edits, d_value]
    losses: Tensor,  # [n_edits]
    right: Tensor,  # [n_edits]
    radii: Tensor,  # [n_edits]
    decays: Tensor,  # [n_edits]
    lr: float,
    stop_loss: float,
    mean_loss_suffices: bool,
) -> None:
    """Raise InvalidArgumentError unless all are of the same edits."""
    _require_dim("deltas", deltas, 2)
    _require_dim("history", history, 2)
    n_edits = deltas.shape[0]
    shapes = {
        **dict.fromkeys(("mean", "square", "gradients"), tuple(deltas.shape)),
        **dict.fromkeys(("active", "losses", "right", "radii", "decays"), (n_edits,)),
        "n_steps": (),
        "history": (history.shape[0], n_edits),
    }
    dtypes = {"n_steps": (torch.int64,), "active": (torch.bool,), "right": (torch.bool,)}
    given = {"deltas": deltas, "mean": mean, "square": square, "n_steps": n_steps}
    given |= {"history": history, "active": active, "gradients": gradients, "losses": losses}
    given |= {"right": right, "radii": radii, "decays": decays}
    for name, tensor in given.items():
        _require_dtype(name, tensor, dtypes.get(name, ACCUMULATOR_DTYPES))
        _require_shape(name, tensor, shapes.get(name, tuple(deltas.shape)))
        _require_same_device(name, tensor, "deltas", deltas)
    for name in ("mean", "square", "history", "gradients", "losses", "radii", "decays"):
        if given[name].dtype != deltas.dtype:
            raise InvalidArgumentError(
                f"{name} must be {deltas.dtype} as deltas are, got {given[name].dtype}"
            )
    for name in ("deltas", "mean", "square", "history", "active"):
        _require_writable(name, given[name])
    if not (math.isfinite(lr) and lr >= 0):
        raise InvalidArgumentError(f"lr must be finite and >= 0, got {lr}")


@torch.library.register_fake("rome_fast::second_moment_update_")
def _(moment_sum, keys, mask, compensation=None, allow_tf32=False):
    check_second_moment_update(moment_sum, keys, mask, compensation)


@torch.library.register_fake("rome_fast::rank_one_update_")
def _(weight, u, v, rounded=None):
    check_rank_one_update(weight, u, v, rounded)


@torch.library.register_fake("rome_fast::rank_one_solve_apply_")
def _(
    weight,
    factor,
    key,
    denominator_key,
    residual,
    min_denominator,
    max_norm,
    inverse=None,
    rounded=None,
):
    check_rank_one_solve_apply(
        weight,
        factor,
        key,
        denominator_key,
        residual,
        min_denominator,
        max_norm,
        inverse,
        rounded,
    )
    dtype = compute_dtype(weight.dtype)
    u = weight.new_empty((weight.shape[1],), dtype=dtype)
    v = weight.new_empty((weight.shape[0],), dtype=dtype)
    denominator = weight.new_empty((), dtype=torch.float64)
    update_norm = weight.new_empty((), dtype=torch.float64)
    applied = weight.new_empty((), dtype=torch.bool)
    return u, v, denominator, update_norm, applied


@torch.library.register_fake("rome_fast::cholesky_update_")
def _(factor, vector, downdate):
    check_cholesky_update(factor, vector)
    return factor.new_empty((), dtype=torch.bool)


@torch.library.register_fake("rome_fast::value_loss")
def _(logits, target_ids, edit_of_read, log_probs_init, kl_factor):
    check_value_loss(logits, target_ids, edit_of_read, log_probs_init, kl_factor)
    n_edits, dtype = logits.shape[0] - target_ids.shape[0], compute_dtype(logits.dtype)
    losses = logits.new_empty((n_edits,), dtype=dtype)
    right = logits.new_empty((n_edits,), dtype=torch.bool)
    n_kept = n_edits if log_probs_init is None else 0
    kept = logits.new_empty((n_kept, logits.shape[1]), dtype=dtype)
    return losses, torch.empty_like(logits), right, kept


@torch.library.register_fake("rome_fast::value_step_")
def _(*args):
    check_value_step(*args)


def _require_weight(weight: Tensor) -> None:
    _require_dtype("weight", weight, WEIGHT_DTYPES)
    _require_dim("weight", weight, 2)
    _require_writable("weight", weight)


def _require_rounded(rounded: Tensor | None, weight: Tensor) -> None:
    if rounded is None:
        return
    _require_dtype("rounded", rounded, HALF_DTYPES)
    if weight.dtype != torch.float32:
        raise InvalidArgumentError(f"rounded needs a float32 weight, got {weight.dtype}")
    _require_shape("rounded", rounded, (weight.shape[0], weight.shape[1]))
    _require_writable("rounded", rounded)
    _require_same_device("rounded", rounded, "weight", weight)


def _require_vector(name: str, vector: Tensor, size: int, other_name: str, other: Tensor) -> None:
    _require_dtype(name, vector, WEIGHT_DTYPES)
    _require_shape(name, vector, (size,))
    _require_same_device(name, vector, other_name, other)


def _require_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise InvalidArgumentError(f"{name} must be one of {names}, got {tensor.dtype}")


def _require_dim(name: str, tensor: Tensor, dim: int) -> None:
    if tensor.dim() != dim:
        raise InvalidArgumentError(f"{name} must have {dim} dimensions, got {list(tensor.shape)}")


def _require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    # Size by size: torch.compile cannot compare tuples of symbolic sizes.
    if tensor.dim() != len(shape) or any(a != b for a, b in zip(tensor.shape, shape, strict=True)):
        raise InvalidArgumentError(
            f"{name} must have shape {list(shape)}, got {list(tensor.shape)}"
        )


def _require_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise InvalidArgumentError(
            f"{name} is on {tensor.device} but {other_name} is on {other.device}"
        )


def _require_writable(name: str, tensor: Tensor) -> None:
    # Two elements at one address would be added to twice.
    if any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)):
        raise InvalidArgumentError(f"{name} is expanded (a stride of 0): it cannot be written into")
