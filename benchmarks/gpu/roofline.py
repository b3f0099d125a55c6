"""What the card does at best: a copy, and torch's own matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu.run import Run
from benchmarks.gpu.timer import Timer, figure, relative_error, require, spread

# dtype, torch's precision of float32 products, tolerance of the check
PRODUCTS = {
    "float32": (torch.float32, "highest", 1e-5),
    "tf32": (torch.float32, "high", 2e-3),
    "bfloat16": (torch.bfloat16, "highest", 1e-2),
}


def roofline(run: Run) -> None:
    run.attempt("copy", _copy)
    for name in PRODUCTS:
        run.attempt(f"product, {name}", _product, name)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """torch's float32 products in full precision ("highest") or by TF32 ("high")."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def random(run: Run, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Normal numbers, drawn on the device."""
    generator = torch.Generator(run.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=run.device).to(dtype)


def _copy(run: Run) -> dict[str, Any]:
    source = random(run, run.pick(2**28, 2**10))
    target = torch.full_like(source, float("nan"))
    target.copy_(source)
    require("copy", relative_error(target, source), 0)
    copy = {"copy": lambda: target.copy_(source)}
    times = Timer(run.device).in_turns(copy, run.pick(50, 3), run.deadline)
    facts = spread(times["copy"])
    n_bytes = 2 * source.nbytes
    return {**facts, "bytes": n_bytes, "gb_per_s": figure(n_bytes / 1e6 / facts["median_ms"])}


def _product(run: Run, name: str) -> dict[str, Any]:
    dtype, precision, tolerance = PRODUCTS[name]
    n = run.pick(8192, 64)
    a, b = (random(run, n, n, dtype=dtype, seed=seed) for seed in (1, 2))
    with matmul_precision(precision):
        reference = a[:64].double() @ b.double()
        error = require(name, relative_error((a @ b)[:64], reference), tolerance)
        del reference
        product = {"product": lambda: torch.mm(a, b)}
        times = Timer(run.device).in_turns(product, run.pick(30, 3), run.deadline)
    facts = spread(times["product"])
    rate = figure(2 * n**3 / 1e9 / facts["median_ms"])
    return {**facts, "n": n, "error": error, "tflop_per_s": rate}
