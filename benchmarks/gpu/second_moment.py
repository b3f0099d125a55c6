"""`second_moment_update_` beside torch's K^T K, by the rate on the full product.

A symmetric product needs half the arithmetic, so twice the rate of the full one is the floor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu.names import PRODUCT
from benchmarks.gpu.roofline import matmul_precision, random
from benchmarks.gpu.run import MismatchError, Run
from benchmarks.gpu.timer import compare, figure, relative_error, require
from rome_fast import ops

KERNEL = "ROME_FAST_CUDA_KERNEL"
WIDTHS = (6400, 14336, 16384)  # GPT-2 XL, Llama-3-8B, GPT-J
N_ROWS = 16384
ADDED = f"{PRODUCT}, added to the sum"
# dtype, allow_tf32, torch's precision of float32 products, tolerance (docs/numerics.md)
KINDS = {
    "bfloat16": (torch.bfloat16, False, "highest", 6e-5),
    "float16": (torch.float16, False, "highest", 6e-5),
    "float32": (torch.float32, False, "highest", 1e-5),
    "tf32": (torch.float32, True, "high", 2e-3),
}


def second_moment(run: Run) -> None:
    for d in WIDTHS:
        for kind in KINDS:
            run.attempt(f"{kind}, d = {d}", _update, kind, d)
    for d in WIDTHS:
        with kernel("mma"):
            run.attempt(f"bfloat16, d = {d}, mma.sync", _update, "bfloat16", d)


@contextmanager
def kernel(name: str) -> Iterator[None]:
    """No faster kernel than this one; "" for the fastest (csrc/kernels/cuda reads it)."""
    before = os.environ.get(KERNEL)
    os.environ[KERNEL] = name
    try:
        yield
    finally:
        os.environ.pop(KERNEL)
        if before is not None:
            os.environ[KERNEL] = before


def _update(run: Run, kind: str, d_named: int) -> dict[str, Any]:
    dtype, allow_tf32, precision, tolerance = KINDS[kind]
    d, n = run.pick(d_named, d_named // 200), run.pick(N_ROWS, 96)
    keys = random(run, n, d, dtype=dtype, seed=d)

    def update(moment: torch.Tensor) -> None:
        ops.second_moment_update_(moment, keys, allow_tf32=allow_tf32)

    error = require(kind, _error(update, keys), tolerance)
    moment, theirs = (torch.zeros(d, d, device=run.device) for _ in range(2))
    rivals = {
        PRODUCT: lambda: keys.T @ keys,
        ADDED: lambda: theirs.add_(keys.T @ keys),
    }
    with matmul_precision(precision):
        facts = compare(run, lambda: update(moment), rivals, rounds=15)
    rate = figure(2 * n * d * d / 1e9 / facts["median_ms"])
    backend = ops.resolve_backend("auto", run.device.type)
    # Half of the full product is what has to be computed.
    share = figure(facts["beside"][PRODUCT]["ratio"] / 2)
    found = {"tflop_per_s_on_full_product": rate, "share_of_floor": share, "error": error}
    return {**facts, **found, "backend": backend, "d": d, "rows": n}


def _error(update: Any, keys: torch.Tensor) -> float:
    """Of the lower triangle, two updates of it; what is above has to stay as it is."""
    d = keys.shape[1]
    moment = torch.full((d, d), float("nan"), device=keys.device).triu_(1)
    update(moment)
    update(moment)
    if int(moment.isnan().sum()) != d * (d - 1) // 2:
        raise MismatchError("what lies above the diagonal was written, or NaN below it: not timed")
    reference = keys.double().T @ keys.double()
    return relative_error(moment.tril_(), reference.tril_().mul_(2))
