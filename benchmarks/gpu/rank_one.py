"""`rank_one_solve_apply_` and `rank_one_update_` beside what is written without them.

The reference sequence is that of the first implementation: a product with a dense float32 inverse,
an outer product, an addition.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.metric import SHAPES, Shape, out_in, shape_of, weight_of, well_conditioned
from benchmarks.gpu.names import REFERENCE
from benchmarks.gpu.roofline import random
from benchmarks.gpu.run import MismatchError, Run
from benchmarks.gpu.timer import compare, relative_error, require
from rome_fast import ops
from rome_fast.ops._default import rank_one_update_default

OUTER = "outer, add"
# Which argument holds the metric, its dtype, how often its triangle is read, tolerance of u.
METRICS = {
    "float64 factor": ("factor", torch.float64, 2, 1e-6),
    "float32 factor": ("factor", torch.float32, 2, 1e-4),
    "float64 inverse": ("inverse", torch.float64, 1, 1e-6),
    "float32 inverse": ("inverse", torch.float32, 1, 1e-4),
}
# The dtype of the weight that is written.
WEIGHTS = {"gpt2-xl": torch.float32, "llama-3-8b": torch.bfloat16, "gpt-j-6b": torch.float32}


def rank_one(run: Run) -> None:
    for name in SHAPES:
        try:
            problem = Problem(run, name)
        except Exception as error:
            run.keep(f"{name}", "failed", why=f"no problem to solve: {error}"[:300])
            continue
        for metric in METRICS:
            run.attempt(f"solve and apply, {name}, {metric}", problem.solve_apply, metric)
        for dtype in (torch.float32, torch.bfloat16):
            title = f"update, {name}, {str(dtype).removeprefix('torch.')}"
            run.attempt(title, problem.update, dtype)


class Problem:
    """One edit's solve: all that it needs, on the device."""

    def __init__(self, run: Run, name: str) -> None:
        self.shape: Shape = shape_of(run, name)
        self.dtype = WEIGHTS[name]
        d_value, d_key = self.shape.d_value, self.shape.d_key
        factor = torch.linalg.cholesky(well_conditioned(run, d_key))
        inverse = torch.cholesky_inverse(factor)
        self.inverse = inverse.float()
        self._matrices = {"factor": factor, "inverse": inverse}
        self.key = random(run, d_key, seed=1)
        self.residual = random(run, d_value, seed=2)
        w = torch.cholesky_solve(self.key.double()[:, None], factor)[:, 0]
        self.u = w / w.norm()

    def solve_apply(self, run: Run, metric: str) -> dict[str, Any]:
        argument, dtype, n_reads, tolerance = METRICS[metric]
        matrix = self._matrices[argument].to(dtype)
        args = {"factor": matrix} if argument == "factor" else {"factor": None, "inverse": matrix}
        weight, theirs = (weight_of(run, self.shape, self.dtype) for _ in range(2))

        def own() -> tuple[torch.Tensor, ...]:
            return ops.rank_one_solve_apply_(
                weight,
                key=self.key,
                denominator_key=self.key,
                residual=self.residual,
                weight_layout=self.shape.weight_layout,
                min_denominator=1e-3,
                **args,
            )

        expected = weight.clone()
        u, v, _, _, applied = own()
        rank_one_update_default(out_in(expected, self.shape), u, v)
        if not bool(applied) or not torch.equal(weight, expected):
            raise MismatchError("the weight is not the old one plus v u^T, to the bit: not timed")
        error = require("u", relative_error(u, self.u), tolerance)
        d = self.shape.d_key
        n_bytes = n_reads * d * (d + 1) // 2 * matrix.itemsize + 2 * weight.nbytes
        rivals = {REFERENCE: lambda: self._reference(theirs)}
        facts = compare(run, own, rivals, n_bytes=n_bytes)
        return {**facts, "error": error, **self._facts(run)}

    def _reference(self, weight: torch.Tensor) -> None:
        w = self.inverse @ self.key
        u = w / w.norm()
        v = self.residual / (self.key @ u)
        out_in(weight, self.shape).add_(torch.outer(v, u))

    def update(self, run: Run, dtype: torch.dtype) -> dict[str, Any]:
        """`rank_one_update_`, as an undo replays it."""
        u, v = self.u.float(), self.residual
        weight, theirs = (weight_of(run, self.shape, dtype) for _ in range(2))

        def own() -> None:
            ops.rank_one_update_(weight, u, v, weight_layout=self.shape.weight_layout)

        expected = weight.clone()
        own()
        rank_one_update_default(out_in(expected, self.shape), u, v)
        if not torch.equal(weight, expected):
            raise MismatchError("other bits than the torch default writes: not timed")
        rivals = {OUTER: lambda: out_in(theirs, self.shape).add_(torch.outer(v, u))}
        facts = compare(run, own, rivals, n_bytes=2 * weight.nbytes)
        return {**facts, **self._facts(run)}

    def _facts(self, run: Run) -> dict[str, Any]:
        sizes = [self.shape.d_value, self.shape.d_key]
        return {"backend": ops.resolve_backend("auto", run.device.type), "weight": sizes}
