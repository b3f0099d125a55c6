"""A call of every op, small and with odd sizes; tests/cuda/on_card.py makes it in many ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rome_fast import ops

Tensors = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """An op's arguments, on the CPU, and how it is called with them.

    Attributes:
        run: (arguments, backend) -> what was written and what was returned.
        tolerance: of the relative difference between two backends.
    """

    arguments: Callable[[], Tensors]
    run: Callable[..., list[torch.Tensor]]
    tolerance: float = 1e-5

    def on(self, device: torch.device | str) -> Tensors:
        """Fresh arguments on a device."""
        found = self.arguments().items()
        return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in found}


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def moment(d: int) -> torch.Tensor:
    keys = normal(3 * d, d, seed=d, dtype=torch.float64)
    return keys.T @ keys / len(keys) + torch.eye(d, dtype=torch.float64)


def _sum(d: int, dtype: torch.dtype) -> Tensors:
    keys, mask = normal(300, d, seed=1, dtype=dtype), torch.arange(300) % 7 != 0
    keys[~mask] = float("nan")
    return {"moment": torch.zeros(d, d), "keys": keys, "mask": mask}


def _add(x: Tensors, backend: str = "auto", allow_tf32: bool = False) -> list[torch.Tensor]:
    options = {"allow_tf32": allow_tf32, "backend": backend}
    ops.second_moment_update_(x["moment"], x["keys"], x["mask"], **options)
    return [x["moment"]]


def _edit(metric: str, dtype: torch.dtype) -> Tensors:
    c = moment(131)
    matrix = torch.linalg.cholesky(c) if metric == "factor" else torch.linalg.inv(c)
    vectors = {"key": normal(131, seed=2), "residual": normal(70, seed=3)}
    return {"weight": normal(70, 131, seed=4, dtype=dtype), metric: matrix, **vectors}


def _solve(x: Tensors, backend: str = "auto") -> list[torch.Tensor]:
    found = ops.rank_one_solve_apply_(
        *(x["weight"], x.get("factor"), x["key"], x["key"], x["residual"]),
        inverse=x.get("inverse"),
        weight_layout="out_in",
        min_denominator=1e-3,
        backend=backend,
    )
    return [x["weight"], *found]


def _replay(x: Tensors, backend: str = "auto") -> list[torch.Tensor]:
    layout = {"weight_layout": "in_out", "backend": backend}
    ops.rank_one_update_(x["weight"].T, x["key"], x["residual"], **layout)
    return [x["weight"]]


def _retain(x: Tensors, backend: str = "auto") -> list[torch.Tensor]:
    return [ops.cholesky_update_(x["factor"], x["key"], backend=backend), x["factor"].tril()]


def _logits(dtype: torch.dtype) -> Tensors:
    init = normal(2, 1003, seed=6).log_softmax(-1)
    reads = {"targets": torch.tensor([3, 1002, 0]), "edit_of_read": torch.tensor([0, 0, 1])}
    return {"logits": normal(5, 1003, seed=5, dtype=dtype), "init": init, **reads}


def _loss(x: Tensors, backend: str = "auto") -> list[torch.Tensor]:
    args = x["logits"], x["targets"], x["edit_of_read"], x["init"]
    return list(ops.value_loss(*args, kl_factor=0.1, backend=backend)[:3])


def _offsets() -> Tensors:
    n_edits, d_value = 3, 77
    named = ("deltas", "mean", "square", "gradients")
    vectors = {name: normal(n_edits, d_value, seed=8 + i) for i, name in enumerate(named)}
    vectors["square"] = vectors["square"].abs()
    return {
        **vectors,
        "n_steps": torch.tensor(2),
        "history": torch.full((9, n_edits), 4.0),
        "active": torch.tensor([True, True, False]),
        "losses": torch.tensor([0.001, 1.0, 1.0]),
        "right": torch.tensor([True, False, False]),
        "radii": torch.full((n_edits,), 4.0),
        "decays": torch.full((n_edits,), 1e-6),
    }


def _move(x: Tensors, backend: str = "auto") -> list[torch.Tensor]:
    state = [x[name] for name in ("deltas", "mean", "square", "n_steps", "history", "active")]
    given = [x[name] for name in ("gradients", "losses", "right", "radii", "decays")]
    options = {"lr": 0.1, "stop_loss": 0.05, "mean_loss_suffices": False, "backend": backend}
    ops.value_step_(*state, *given, **options)
    return state


CALLS = {
    # A row of 136 bfloat16 numbers is a multiple of 16 bytes, one of 131 is not.
    "second_moment_update_, bfloat16": Call(partial(_sum, 136, torch.bfloat16), _add),
    "second_moment_update_, float16, odd": Call(partial(_sum, 131, torch.float16), _add),
    "second_moment_update_, float32": Call(partial(_sum, 136, torch.float32), _add),
    "second_moment_update_, tf32": Call(
        partial(_sum, 136, torch.float32), partial(_add, allow_tf32=True), 2e-3
    ),
    "rank_one_solve_apply_, factor": Call(partial(_edit, "factor", torch.float32), _solve),
    "rank_one_solve_apply_, inverse": Call(partial(_edit, "inverse", torch.bfloat16), _solve, 1e-2),
    "rank_one_update_": Call(partial(_edit, "factor", torch.float32), _replay),
    "cholesky_update_": Call(partial(_edit, "factor", torch.float32), _retain),
    "value_loss, float32": Call(partial(_logits, torch.float32), _loss),
    "value_loss, bfloat16": Call(partial(_logits, torch.bfloat16), _loss, 1e-2),
    "value_step_": Call(_offsets, _move),
}

# What ROME_FAST_CUDA_KERNEL chooses, by op and for all others; "" is what runs without it.
KERNELS = {"second_moment_update_": ("wgmma", "mma", "naive")}
OTHER_KERNELS = ("", "naive")


def op_of(name: str) -> str:
    """Of a call, by its name."""
    return name.split(",")[0]


KERNELS_OF_CALLS = [
    (name, kernel) for name in CALLS for kernel in KERNELS.get(op_of(name), OTHER_KERNELS)
]
