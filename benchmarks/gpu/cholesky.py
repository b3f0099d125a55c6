"""`cholesky_update_` beside another factorisation of the changed matrix."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.metric import SHAPES, shape_of, well_conditioned
from benchmarks.gpu.roofline import random
from benchmarks.gpu.run import MismatchError, Run
from benchmarks.gpu.timer import compare, relative_error, require
from rome_fast import ops

CHOLESKY = "torch.linalg.cholesky"
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


def cholesky(run: Run) -> None:
    for name in SHAPES:
        for dtype in TOLERANCES:
            title = f"{str(dtype).removeprefix('torch.')}, {name}"
            run.attempt(title, _update, name, dtype)


def _update(run: Run, name: str, dtype: torch.dtype) -> dict[str, Any]:
    d = shape_of(run, name).d_key
    moment = well_conditioned(run, d)
    factor = torch.linalg.cholesky(moment).to(dtype)
    vector = random(run, d, dtype=dtype, seed=4)
    updated = factor.clone()
    if not bool(ops.cholesky_update_(updated, vector)):
        raise MismatchError("an update of a sound factor was refused: not timed")
    lower = updated.double().tril()
    wanted = torch.addr(moment, vector.double(), vector.double())
    error = require(name, relative_error(lower @ lower.T, wanted), TOLERANCES[dtype])
    del lower, wanted, updated
    moment = moment.to(dtype)
    facts = compare(
        run,
        lambda: ops.cholesky_update_(factor, vector),
        {CHOLESKY: lambda: torch.linalg.cholesky(moment)},
        rounds=10,
        # L^-1 x reads the triangle; then it is read and written.
        n_bytes=3 * d * (d + 1) // 2 * factor.itemsize,
    )
    backend = ops.resolve_backend("auto", run.device.type)
    return {**facts, "error": error, "backend": backend, "d": d, "strides": list(factor.stride())}
