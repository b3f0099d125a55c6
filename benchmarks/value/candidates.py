"""Candidate searches for v*: which solver, on which rows, from where, and how its end is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.value.solvers import SOLVERS

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.value.problem import Evaluation, Problem


@dataclass(frozen=True)
class Candidate:
    """One way to search.

    Attributes:
        hparams: changes to the model's defaults.
        first_rows: how many contexts run from the start, the worst of the others when those say
            the target; None: all.
        kl_every: the KL prompt runs in every so many steps.
        scale: what the offset is multiplied by when it is found, within the ball.
        start: "zero", or a way of ``warm.py``.
        contexts: "sampled" from the model, the same for all models and broken off as those are
            ("fragments", "3 fragments"), or whole ("sentences", "3 sentences").
        thin_steps: in so many steps at first every other block is left out, and the KL prompt,
            whose target is of the whole model.
    """

    solver: str = "adam"
    hparams: dict[str, Any] = field(default_factory=dict)
    first_rows: int | None = None
    kl_every: int = 1
    scale: float = 1.0
    start: str = "zero"
    dtype: str = "model"
    contexts: str = "sampled"
    thin_steps: int = 0


@dataclass(frozen=True)
class Found:
    """Where a search ended."""

    delta: Tensor
    loss: float


def search(problem: Problem, way: Candidate, start: Tensor | None = None) -> Found:
    """Search as a candidate does, up to the stop rule on all contexts, or to the last step."""
    solver = SOLVERS[way.solver](problem.ball)
    active = _first_rows(problem, way.first_rows)
    delta = problem.zero if start is None else problem.ball.project(start)
    at = None
    for step in range(problem.ball.max_steps):
        is_thin = step < way.thin_steps
        if step == way.thin_steps > 0:
            solver = SOLVERS[way.solver](problem.ball)
        rows = active if is_thin or step % way.kl_every else (*active, problem.n_contexts)
        at = problem(delta, rows, is_thin=is_thin)
        if problem.found(at) and not is_thin:
            others = [row for row in problem.all_rows if row not in rows]
            if not others:
                break
            rest = problem(delta, others, gradient=False)
            if _all_found(problem, at, rest):
                break
            more = _worst(problem, rest)
            if more is not None:
                active = (*active, more)
                solver = SOLVERS[way.solver](problem.ball) if way.solver != "adam" else solver
                continue
        if step + 1 < problem.ball.max_steps:
            delta = solver.step(at)
    assert at is not None
    return Found(at.delta, at.loss)


def _first_rows(problem: Problem, n: int | None) -> tuple[int, ...]:
    """The bare prompt, and the contexts whose keys are least like those taken before."""
    n_contexts = problem.n_contexts
    if n is None or n >= n_contexts:
        return tuple(range(n_contexts))
    keys = torch.nn.functional.normalize(problem.first.keys[:n_contexts], dim=1)
    chosen = [problem.edit.prompt_row]
    while len(chosen) < n:
        nearest = (keys @ keys[chosen].T).amax(1)
        nearest[chosen] = torch.inf
        chosen.append(int(nearest.argmin()))
    return tuple(chosen)


def _all_found(problem: Problem, at: Evaluation, rest: Evaluation) -> bool:
    n, m = len(at.row_losses), len(rest.row_losses)
    if not rest.said or m == 0:
        return m == 0
    extra = float(rest.row_losses.mean()) - float(at.row_losses.mean())
    return at.loss + extra * m / (n + m) < problem.ball.stop_loss


def _worst(problem: Problem, rest: Evaluation) -> int | None:
    contexts = [row for row in rest.rows if row < problem.n_contexts]
    if not contexts:
        return None
    return contexts[int(rest.row_losses.argmax())]


_STOP_1 = {"v_stop_loss": 0.1}
_STOP_3 = {"v_stop_loss": 0.3}
_SIX = {"contexts": "fragments", "dtype": "bfloat16"}
_FEW = {"contexts": "3 fragments", "dtype": "bfloat16"}

CANDIDATES: dict[str, Candidate] = {
    "adam": Candidate(),
    "adam, stop .3": Candidate(hparams=_STOP_3),
    "adam, stop .3, x 1.25": Candidate(hparams=_STOP_3, scale=1.25),
    "adam, stop .3, x 1.5": Candidate(hparams=_STOP_3, scale=1.5),
    "adam, stop .1, rate .75, fragments, bfloat16": Candidate(
        hparams={**_STOP_1, "v_lr": 0.75}, **_SIX
    ),
    "adam, stop .3, rate .75, fragments, bfloat16": Candidate(
        hparams={**_STOP_3, "v_lr": 0.75}, **_SIX
    ),
    "adam, stop .3, rate .75, fragments, bfloat16, x 1.25": Candidate(
        hparams={**_STOP_3, "v_lr": 0.75}, scale=1.25, **_SIX
    ),
    "adam, bfloat16": Candidate(dtype="bfloat16"),
    "adam, 2 rows first": Candidate(first_rows=2),
    "adam, KL every 4": Candidate(kl_every=4),
    "adam, from ridge": Candidate(start="ridge"),
    "adam, from same target": Candidate(start="same target"),
    "adam, from other subject": Candidate(start="other subject"),
    "momentum": Candidate("momentum"),
    "polyak": Candidate("polyak"),
    "signs": Candidate("signs"),
    "barzilai_borwein": Candidate("barzilai_borwein"),
    "gauss_newton": Candidate("gauss_newton"),
    "gauss_newton, x 1.5": Candidate("gauss_newton", scale=1.5),
    "gauss_newton, x 2": Candidate("gauss_newton", scale=2.0),
    "scaled gauss_newton": Candidate("scaled gauss_newton"),
    "scaled gauss_newton, x 1.25": Candidate("scaled gauss_newton", scale=1.25),
    "wide gauss_newton": Candidate("wide gauss_newton"),
    "lbfgs": Candidate("lbfgs"),
    "lbfgs, x 1.5": Candidate("lbfgs", scale=1.5),
    "wide lbfgs": Candidate("wide lbfgs"),
    "scaled lbfgs": Candidate("scaled lbfgs"),
    "lbfgs, 2 rows first": Candidate("lbfgs", first_rows=2),
    "lbfgs, KL every 4": Candidate("lbfgs", kl_every=4),
    "lbfgs, stop .2": Candidate("lbfgs", hparams={"v_stop_loss": 0.2}),
    "lbfgs, stop .2, x 1.5": Candidate("lbfgs", hparams={"v_stop_loss": 0.2}, scale=1.5),
    "lbfgs, stop .1": Candidate("lbfgs", hparams=_STOP_1),
    "lbfgs, stop .1, x 1.25": Candidate("lbfgs", hparams=_STOP_1, scale=1.25),
    "lbfgs, stop .1, bfloat16": Candidate("lbfgs", hparams=_STOP_1, dtype="bfloat16"),
    "lbfgs, stop .1, 2 rows first": Candidate("lbfgs", hparams=_STOP_1, first_rows=2),
    "lbfgs, stop .1, from ridge": Candidate("lbfgs", hparams=_STOP_1, start="ridge"),
    "lbfgs, stop .1, from same relation": Candidate(
        "lbfgs", hparams=_STOP_1, start="same relation"
    ),
    "lbfgs, stop .1, sentences": Candidate("lbfgs", hparams=_STOP_1, contexts="sentences"),
    "lbfgs, stop .1, sentences, x 1.25": Candidate(
        "lbfgs", hparams=_STOP_1, contexts="sentences", scale=1.25
    ),
    "lbfgs, stop .1, 3 sentences": Candidate("lbfgs", hparams=_STOP_1, contexts="3 sentences"),
    "lbfgs, stop .1, sentences, bfloat16": Candidate(
        "lbfgs", hparams=_STOP_1, contexts="sentences", dtype="bfloat16"
    ),
    "lbfgs, stop .1, fragments, bfloat16": Candidate("lbfgs", hparams=_STOP_1, **_SIX),
    "lbfgs, stop .1, 3 fragments, bfloat16": Candidate("lbfgs", hparams=_STOP_1, **_FEW),
    "lbfgs, stop .1, 3 fragments, bfloat16, earlier pairs": Candidate(
        "lbfgs, earlier pairs", hparams=_STOP_1, **_FEW
    ),
    "lbfgs, stop .1, 3 fragments, bfloat16, half the blocks first": Candidate(
        "lbfgs", hparams=_STOP_1, thin_steps=4, **_FEW
    ),
}
