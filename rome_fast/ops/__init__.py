"""The only door to the native code: its ops and the choice of their backend.

Each function checks its arguments, then calls either the native kernel or the pure-torch default.
All of them are inference-only: they write through the storage and record nothing for autograd.
"""

from __future__ import annotations

import math
import os
from typing import Any, TypeVar

import torch
from torch import Tensor

from rome_fast.errors import BackendUnavailableError, InvalidArgumentError
from rome_fast.ops import _default, _native, _schema

__all__ = [
    "cholesky_update_",
    "is_torch_asked",
    "rank_one_solve_apply_",
    "rank_one_update_",
    "resolve_backend",
    "second_moment_update_",
    "value_loss",
    "value_step_",
]

T = TypeVar("T", Tensor, Tensor | None)

_BACKENDS = ("auto", "native", "torch")


def resolve_backend(backend: str = "auto", device_type: str = "cpu") -> str:
    """Name the backend that will run: "native" or "torch".

    backend: "auto" (`ROME_FAST_BACKEND` if set, else native where it can run), "native", "torch".
    Raises InvalidArgumentError for another name, BackendUnavailableError (with the reason) when
    "native" is asked for and cannot run. Loads the native library on first need.
    """
    source = "backend"
    if backend == "auto":
        backend = os.environ.get("ROME_FAST_BACKEND") or "auto"
        source = "ROME_FAST_BACKEND"
    if backend not in _BACKENDS:
        raise InvalidArgumentError(f"{source} must be one of {_BACKENDS}, got {backend!r}")
    if backend == "torch":
        return "torch"
    reason = _why_not_native(device_type)
    if reason and backend == "native":
        raise BackendUnavailableError(f"{source}='native' is not available: {reason}")
    return "torch" if reason else "native"


# What torch.compiler.assume_constant_result sets: compiled code asks once. That function itself
# imports the compiler, which would take half of the time of `import rome_fast`.
vars(resolve_backend)["_dynamo_marked_constant"] = True


def is_torch_asked(backend: str = "auto") -> bool:
    """Whether plain torch was asked for, by the argument or by `ROME_FAST_BACKEND`."""
    if backend == "auto":
        backend = os.environ.get("ROME_FAST_BACKEND") or "auto"
    return backend == "torch"


@torch.no_grad()
def second_moment_update_(
    moment_sum: Tensor,  # [d, d] float32 or float64
    keys: Tensor,  # [n, d]
    mask: Tensor | None = None,  # [n] bool
    *,
    compensation: Tensor | None = None,  # [d, d] float32
    allow_tf32: bool = False,
    backend: str = "auto",
) -> None:
    """Add the sum of k k^T over the rows that mask keeps into the lower triangle, in place.

    With compensation (zeros at the start, and only for a float32 moment_sum) what rounding drops
    from the sum is kept there and added the next time (Kahan 1965): the value is
    moment_sum.double() + compensation.double(), and its error does not grow with the number of
    calls. moment_sum alone is that value rounded to float32.

    allow_tf32 lets CUDA round float32 keys before it multiplies, to TF32 (10 bits of fraction): an
    error of up to 2^-10 of each product, and one product of the tensor cores instead of three. On
    Hopper they are rounded to 16 bits, for three products instead of six. Other keys, the CPU and
    the torch backend take no notice of it.

    The strictly upper parts of both are left as they are. Raises InvalidArgumentError.
    """
    _schema.check_second_moment_update(moment_sum, keys, mask, compensation)
    args = (moment_sum, keys, mask, compensation, bool(allow_tf32))
    if resolve_backend(backend, moment_sum.device.type) == "native":
        _call_native(torch.ops.rome_fast.second_moment_update_.default, *args)
    else:
        _default.second_moment_update_default(*args)


@torch.no_grad()
def rank_one_update_(
    weight: Tensor,  # [d_value, d_key] "out_in" or [d_key, d_value] "in_out"
    u: Tensor,  # [d_key]
    v: Tensor,  # [d_value]
    *,
    weight_layout: str,
    rounded: Tensor | None = None,  # bfloat16 or float16, in the shape of a float32 weight
    backend: str = "auto",
) -> None:
    """weight += v u^T (in the weight's layout), in place: replays one entry of an edit log.

    Each element is rounded after the product and after the sum, in float64 for float64 weights
    and float32 otherwise, then to the weight's dtype: every backend writes the same bits.
    ``rounded`` becomes the new weight rounded to its own dtype, in the same pass.
    Raises InvalidArgumentError.
    """
    args = (_as_out_in(weight, weight_layout), u, v, _as_out_in(rounded, weight_layout))
    _schema.check_rank_one_update(*args)
    if resolve_backend(backend, weight.device.type) == "native":
        _call_native(torch.ops.rome_fast.rank_one_update_.default, *args)
    else:
        _default.rank_one_update_default(*args)


@torch.no_grad()
def rank_one_solve_apply_(
    weight: Tensor,  # [d_value, d_key] "out_in" or [d_key, d_value] "in_out"
    factor: Tensor | None,  # [d_key, d_key] float32 or float64, any strides
    key: Tensor,  # [d_key]
    denominator_key: Tensor,  # [d_key]
    residual: Tensor,  # [d_value]
    *,
    weight_layout: str,
    min_denominator: float,
    max_norm: float = math.inf,
    inverse: Tensor | None = None,  # [d_key, d_key] float32 or float64, any strides
    rounded: Tensor | None = None,  # bfloat16 or float16, in the shape of a float32 weight
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Solve for the update and add it to weight in one read and one write of it.

    With C = L L^T (factor = L, lower; its upper part is never read; None means C = I):
    w = C^-1 key, u = w / |w|, denominator = denominator_key . u, v = residual / denominator,
    weight += v u^T (in the weight's layout). ``rounded`` becomes the new weight rounded to its own
    dtype, in the same pass.

    ``inverse`` is C^-1 itself, of which the lower triangle is read, in the factor's stead: half the
    bytes, and no solve. It costs accuracy. What rounding left in an inverse of dtype eps is an
    error of about cond(C) eps in w, whatever the key, and a computed inverse of a C that is nearly
    singular need not even be positive; a factor solves a system within a few eps of C. The
    library's own edits pass the factor.

    Nothing is written when u, v, denominator or update_norm is not finite, when
    |denominator| < min_denominator * |key . u| (a scale-free test: the ratio is 1 when both keys
    are the same), or when update_norm > max_norm. The last output says which it was, without a
    host sync.

    Returns u [d_key] and v [d_value] (the very values added: float64 for float64 weights, else
    float32), denominator [] and update_norm [] = |v| (float64), applied [] (bool).
    Raises InvalidArgumentError.
    """
    weight, rounded = _as_out_in(weight, weight_layout), _as_out_in(rounded, weight_layout)
    limits = float(min_denominator), float(max_norm)
    args = (weight, factor, key, denominator_key, residual, *limits, inverse, rounded)
    _schema.check_rank_one_solve_apply(*args)
    if resolve_backend(backend, weight.device.type) == "native":
        return _call_native(torch.ops.rome_fast.rank_one_solve_apply_.default, *args)
    return _default.rank_one_solve_apply_default(*args)


@torch.no_grad()
def cholesky_update_(
    factor: Tensor,  # [d, d] float32 or float64, any strides
    vector: Tensor,  # [d]
    *,
    downdate: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Make the lower Cholesky factor of C that of C + x x^T, or of C - x x^T, in place.

    A few passes over the factor instead of a refactorisation, computed in float64 but for the
    factor itself (Gill, Golub, Murray and Saunders 1974, method C1). Its strictly upper part is
    neither read nor written.

    Nothing is written when the factor or vector is not finite, or when a downdate would leave
    1 - x^T C^-1 x at or below 64 units of rounding of the factor's dtype: C - x x^T is then not
    positive definite, or cannot be told from it. The output says which it was, without a host
    sync.

    Returns applied [] (bool). Raises InvalidArgumentError.
    """
    _schema.check_cholesky_update(factor, vector)
    # What overflows the factor's dtype is not finite then, and refused.
    args = (factor, vector.to(factor.dtype), bool(downdate))
    if resolve_backend(backend, factor.device.type) == "native":
        return _call_native(torch.ops.rome_fast.cholesky_update_.default, *args)
    return _default.cholesky_update_default(*args)


@torch.no_grad()
def value_loss(
    logits: Tensor,  # [n_reads + n_edits, vocabulary]
    target_ids: Tensor,  # [n_reads] int64
    edit_of_read: Tensor,  # [n_reads] int64, in order
    log_probs_init: Tensor | None,  # [n_edits, vocabulary]
    *,
    kl_factor: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss that the search for v* minimises, from the logits, and its gradient.

    The loss of an edit is the mean of -log p(target) over its reads, and kl_factor times
    KL(now || before) at its own last row; "before" is log_probs_init, or what these logits say
    where that is None. A read of edit n_edits is nobody's: it counts for none, and has no gradient.
    Computed in float64 for float64 logits, else in float32.

    Returns losses [n_edits], the gradient of their sum (like logits), right [n_edits] (bool:
    the target is the likeliest in all of an edit's reads), and log_probs_init for the next calls
    (of no rows where it was given). Ids outside of the vocabulary are not checked for.
    Raises InvalidArgumentError.
    """
    args = (logits, target_ids, edit_of_read, log_probs_init, float(kl_factor))
    _schema.check_value_loss(*args)
    if resolve_backend(backend, logits.device.type) == "native":
        return _call_native(torch.ops.rome_fast.value_loss.default, *args)
    return _default.value_loss_default(*args)


@torch.no_grad()
def value_step_(
    deltas: Tensor,  # [n_edits, d_value] float32 or float64
    mean: Tensor,  # like deltas
    square: Tensor,  # like deltas
    n_steps: Tensor,  # [] int64
    history: Tensor,  # [max_steps, n_edits]
    active: Tensor,  # [n_edits] bool
    gradients: Tensor,  # like deltas
    losses: Tensor,  # [n_edits]
    right: Tensor,  # [n_edits] bool
    radii: Tensor,  # [n_edits]
    decays: Tensor,  # [n_edits]
    *,
    lr: float,
    stop_loss: float,
    mean_loss_suffices: bool,
    backend: str = "auto",
) -> None:
    """One step of Adam on each active edit's offset, after its loss is recorded; all in place.

    The loss is losses + decays * |delta|; it becomes history[n_steps]. An edit stops being active
    when its loss is below stop_loss and it is right (or mean_loss_suffices), when its loss is not
    finite, and in the last of max_steps. Inactive edits do not change. The others' offsets move by
    Adam (torch's defaults but lr), then back into the ball of their radius. n_steps grows by one.
    Nothing waits for the host, and steps after all have stopped change nothing else.
    Raises InvalidArgumentError.
    """
    state = (deltas, mean, square, n_steps, history, active)
    given = (gradients, losses, right, radii, decays)
    settings = (float(lr), float(stop_loss), bool(mean_loss_suffices))
    _schema.check_value_step(*state, *given, *settings)
    if resolve_backend(backend, deltas.device.type) == "native":
        _call_native(torch.ops.rome_fast.value_step_.default, *state, *given, *settings)
    else:
        _default.value_step_default(*state, *given, *settings)


def _as_out_in(weight: T, weight_layout: str) -> T:
    """The weight as a [d_value, d_key] view, whichever way it is stored."""
    if weight_layout not in ("out_in", "in_out"):
        raise InvalidArgumentError(
            f"weight_layout must be 'out_in' or 'in_out', got {weight_layout!r}"
        )
    return weight if weight is None or weight_layout == "out_in" else weight.T


def _call_native(op: Any, *args: Any) -> Any:
    """Run a native op and tell autograd which of its arguments have changed."""
    result = op(*args)
    if torch.compiler.is_compiling():  # compiled code keeps the versions itself
        return result
    for arg, declared in zip(args, op._schema.arguments, strict=True):
        mutated = declared.alias_info is not None and declared.alias_info.is_write
        if mutated and arg is not None and not arg.is_inference():
            torch.autograd.graph.increment_version(arg)
    return result


def _why_not_native(device_type: str) -> str:
    """The reason there is no native kernel for this device, or an empty string."""
    if device_type not in _native.LIBRARIES:
        return f"there is no native kernel for {device_type} tensors"
    return _native.load(device_type).reason
