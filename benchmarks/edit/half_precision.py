"""What a thousand edits of a half-precision weight lose when each is rounded by itself.

    python -m benchmarks.edit.half_precision --out benchmarks/results/half-precision.json

A random weight in the shape of the small GPT-2's takes rank-one updates of random directions, each
of the same share of the weight's norm. `direct` adds each to the half-precision weight, which
rounds a thousand times; `sum` is what a WeightHistory does: a float32 sum, rounded once. Errors are
relative to the norm of all updates together, against float64.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.support.results import write
from rome_fast import RankOneUpdate, ops
from rome_fast.bench.setting import setting
from rome_fast.model.spec import DownProjection
from rome_fast.update.undo import WeightHistory

D_VALUE, D_KEY = 768, 3072
SHARES = (1e-1, 1e-2, 1e-3, 1e-4)
DTYPES = (torch.bfloat16, torch.float16)


def errors_of(dtype: torch.dtype, share: float, n_edits: int) -> dict[str, float]:
    """Both errors for updates of ``share`` of the weight's norm."""
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Linear(D_KEY, D_VALUE, bias=False, dtype=dtype)
    module.weight.copy_(0.02 * torch.randn(D_VALUE, D_KEY, generator=generator))
    base, direct = module.weight.detach().double(), module.weight.detach().clone()
    history = WeightHistory(DownProjection("down", module, 0, "out_in"), "auto")
    exact, size = torch.zeros_like(base), share * float(base.norm())
    for _ in range(n_edits):
        u, v = torch.randn(D_KEY, generator=generator), torch.randn(D_VALUE, generator=generator)
        update = RankOneUpdate(u / u.norm(), size * v / v.norm(), "out_in")
        ops.rank_one_update_(direct, update.u, update.v, weight_layout="out_in")
        history.add(update)
        exact += update.dense().double()
    return {
        name: float((weight.double() - base - exact).norm() / exact.norm())
        for name, weight in (("direct", direct), ("sum", module.weight.detach()))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    rows = []
    table = Table("dtype", "update / weight", "direct", "sum", box=box.SIMPLE_HEAD)
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for share in SHARES:
            errors = errors_of(dtype, share, args.edits)
            rows.append({"dtype": name, "share": share, **errors})
            table.add_row(name, f"{share:g}", *(f"{100 * x:.3g} %" for x in errors.values()))
    Console(width=100).print(table)
    if args.out:
        write(args.out, {"setting": setting(), "edits": args.edits}, rows, "points")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
