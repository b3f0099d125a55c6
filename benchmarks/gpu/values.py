"""`value_loss` and `value_step_`, the two ops of every step of the search, beside plain torch.

A step has few rows, so launches weigh as much as bytes: the rivals are what autograd and
torch.optim.Adam launch for the same.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.roofline import random
from benchmarks.gpu.run import MismatchError, Run
from benchmarks.gpu.timer import compare, relative_error, require
from rome_fast import ops

AUTOGRAD, ADAM = "log_softmax and autograd", "torch.optim.Adam and clamp"
KL_FACTOR, N_READS, N_EDITS = 0.0625, 21, 1
VOCABULARIES = {"gpt2-xl": 50257, "llama-3-8b": 128256}
WIDTHS = {"gpt2-xl": 1600, "llama-3-8b": 4096}
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def values(run: Run) -> None:
    for name, size in VOCABULARIES.items():
        for dtype, tolerance in DTYPES.items():
            title = f"value_loss, {name}, {str(dtype).removeprefix('torch.')}"
            run.attempt(title, _loss, run.pick(size, size // 500), dtype, tolerance)
    for name, width in WIDTHS.items():
        run.attempt(f"value_step_, {name}", _step, run.pick(width, width // 50))


def _loss(run: Run, size: int, dtype: torch.dtype, tolerance: float) -> dict[str, Any]:
    logits = 3 * random(run, N_READS + N_EDITS, size, dtype=dtype, seed=1)
    before = 3 * random(run, N_EDITS, size, seed=2)
    targets = torch.arange(N_READS, device=run.device) % size
    edit_of_read = torch.zeros(N_READS, dtype=torch.int64, device=run.device)
    init = before.log_softmax(-1)

    def own() -> Any:
        return ops.value_loss(logits, targets, edit_of_read, init, kl_factor=KL_FACTOR)

    losses, gradient, _, _ = own()
    reference, slope = _by_autograd(logits.double(), targets, init.double())
    require("losses", relative_error(losses, reference), 1e-5)
    error = require("gradient", relative_error(gradient, slope), tolerance)
    rivals = {AUTOGRAD: lambda: _by_autograd(logits, targets, init)}
    # The logits are read and their gradient is written; the KL's row has a distribution beside it.
    facts = compare(run, own, rivals, n_bytes=2 * logits.nbytes + init.nbytes)
    return {**facts, "error": error, "logits": list(logits.shape), **_backend(run)}


def _by_autograd(logits: Any, targets: Any, init: Any) -> tuple[Any, Any]:
    """The loss of one edit, as it is written with torch alone, and its gradient."""
    leaf = logits.detach().requires_grad_()
    with torch.enable_grad():
        wide = leaf if leaf.dtype == torch.float64 else leaf.float()
        reads, now = wide.log_softmax(-1).split([N_READS, N_EDITS])
        nll = -reads.gather(-1, targets[:, None]).mean()
        loss = nll + KL_FACTOR * (now.exp() * (now - init)).sum()
        (slope,) = torch.autograd.grad(loss, [leaf])
    return loss.detach()[None], slope


class State:
    """What a step moves and what it is given, as value_step_ takes them."""

    def __init__(self, run: Run, width: int) -> None:
        zeros, self.device = torch.zeros(N_EDITS, width, device=run.device), run.device
        self.deltas, self.mean, self.square = (zeros.clone() for _ in range(3))
        self.n_steps = torch.zeros((), dtype=torch.int64, device=run.device)
        self.history = torch.full((10**6, N_EDITS), float("nan"), device=run.device)
        self.active = torch.ones(N_EDITS, dtype=torch.bool, device=run.device)
        self.gradients = random(run, N_EDITS, width, seed=5)
        self.losses = torch.full((N_EDITS,), 2.0, device=run.device)
        self.right = torch.zeros(N_EDITS, dtype=torch.bool, device=run.device)
        self.radii = torch.full((N_EDITS,), 0.5 * width**0.5, device=run.device)
        self.decays = torch.full((N_EDITS,), 1e-3, device=run.device)

    def step(self) -> None:
        ops.value_step_(
            *(self.deltas, self.mean, self.square, self.n_steps, self.history, self.active),
            *(self.gradients, self.losses, self.right, self.radii, self.decays),
            lr=0.1,
            stop_loss=0.05,
            mean_loss_suffices=False,
        )


class ByTorch:
    """The same with torch.optim.Adam."""

    def __init__(self, state: State, dtype: torch.dtype) -> None:
        self.deltas = torch.zeros_like(state.deltas, dtype=dtype).requires_grad_()
        self._given = [x.to(dtype) for x in (state.gradients, state.radii, state.decays)]
        self._adam = torch.optim.Adam([self.deltas], lr=0.1)

    @torch.no_grad()
    def step(self) -> None:
        gradients, radii, decays = self._given
        norm = self.deltas.norm(dim=1, keepdim=True)
        slope = decays[:, None] * self.deltas / norm.clamp(min=1e-30)
        self.deltas.grad = gradients + slope
        self._adam.step()
        self.deltas.mul_((radii[:, None] / self.deltas.norm(dim=1, keepdim=True)).clamp(max=1))


def _step(run: Run, width: int) -> dict[str, Any]:
    state = State(run, width)
    reference, rival = ByTorch(state, torch.float64), ByTorch(state, torch.float32)
    for _ in range(8):  # the ball is reached after five
        state.step()
        reference.step()
    error = require("deltas", relative_error(state.deltas, reference.deltas.detach()), 1e-5)
    if int(state.n_steps) != 8 or not bool(state.active.all()):
        raise MismatchError("the steps were not counted, or a request has ended: not timed")
    # Four arrays are read and three are written.
    n_bytes = 7 * state.deltas.nbytes
    facts = compare(run, state.step, {ADAM: rival.step}, n_bytes=n_bytes)
    return {**facts, "error": error, "width": width, **_backend(run)}


def _backend(run: Run) -> dict[str, str]:
    return {"backend": ops.resolve_backend("auto", run.device.type)}
