"""Ways to put many found values into one weight: what the field has published, and the joint solve.

Every policy is given the same keys and offsets and returns the change of the weight. Those of the
references that go one edit a step see at each step the residual that is left on the weight as it is
then. Notation and formulas: docs/sessions.md. Squared lengths of keys differ between models by
orders of magnitude, and so the published weights mean little here; each is tried over some.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

# How often the spectral basis of the weight as it is now is read again, in edits.
_EVERY = 10


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be solved; float64 throughout.

    Attributes:
        weight: W0, [d_value, d_key].
        moment: C, [d_key, d_key].
        prompt_keys: after the bare prompt, [n, d_key].
        mean_keys: over the contexts, [n, d_key].
        deltas: what each edit adds to W0 k, [n, d_value].
    """

    weight: Tensor
    moment: Tensor
    prompt_keys: Tensor
    mean_keys: Tensor
    deltas: Tensor

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of C, ascending, and its eigenvectors [d_key, d_key] as columns."""
        values, vectors = torch.linalg.eigh(self.moment)
        return values, vectors

    def keys(self, kind: str) -> Tensor:
        """[n, m, d_key]: ``"prompt"``, ``"mean"``, half of each (``"middle"``), or ``"both"``."""
        middle = (self.prompt_keys + self.mean_keys) / 2
        chosen = {"prompt": [self.prompt_keys], "mean": [self.mean_keys], "middle": [middle]}
        return torch.stack(chosen.get(kind, [self.prompt_keys, self.mean_keys]), 1)


Policy = Callable[[Problem], Tensor]


def joint(problem: Problem, lam: float, kind: str = "both") -> Tensor:
    """R (K^T C^-1 K + lam I)^-1 K^T C^-1, all edits at once: in no order."""
    keys = problem.keys(kind)
    rows = keys.flatten(0, 1)
    wanted = problem.deltas.repeat_interleave(keys.shape[1], 0)
    solved = torch.linalg.solve(problem.moment, rows.T)  # C^-1 K
    gram = rows @ solved
    gram.diagonal().add_(lam)
    return wanted.T @ torch.linalg.solve(gram, solved.T)


class _Steps:
    """One edit a step: M^-1 is kept, and grows by the keys of each edit.

    Args:
        inverse: M^-1 before the first edit, [d_key, d_key]; a projector, for the null-space ones.
    """

    def __init__(self, problem: Problem, inverse: Tensor, kind: str = "mean") -> None:
        self.problem, self.inverse = problem, inverse.clone()
        self.keys = problem.keys(kind)
        self.delta = torch.zeros_like(problem.weight)

    def run(self, shape: Callable[[Tensor, int], Tensor] = lambda update, step: update) -> Tensor:
        """All edits in turn; ``shape`` is what is done to each update before it is added."""
        for i, keys in enumerate(self.keys):
            for key in keys:
                left = self.problem.deltas[i] - self.delta @ key
                self.delta += shape(torch.outer(left, self._gain(key)), i)
        return self.delta

    def _gain(self, key: Tensor) -> Tensor:
        """M^-1 k with k in M, by which M^-1 is then less (Sherman and Morrison)."""
        solved = self.inverse @ key
        gain = solved / (1 + key @ solved)
        self.inverse.addr_(gain, solved, alpha=-1)
        return gain


def memit_seq(problem: Problem, lam: float, ridge: float = 0.0) -> Tensor:
    """MEMIT with the keys of the past: M = lam C + sum of k k^T; ENCORE adds ``ridge`` I to it.

    Args:
        ridge: as a share of the mean eigenvalue of lam C.
    """
    return _Steps(problem, _accumulated(problem, lam, ridge)).run()


def alpha_edit(problem: Problem, null: float, ridge: float, drift: float = 0.0) -> Tensor:
    """AlphaEdit: changes within the ``null`` share of C's directions that text uses least.

    M = P (sum of k k^T) + ridge I, and BetaEdit adds ``drift`` C within P.

    Args:
        ridge: as a share of the mean squared length of the projected keys.
    """
    values, vectors = problem.spectrum
    n = int(null * len(values))
    basis, own = vectors[:, :n], values[:n]
    lengths = (problem.mean_keys @ basis).square().sum(1).mean()
    inverse = (basis / (ridge * lengths + drift * own)) @ basis.T
    return _Steps(problem, inverse).run()


def evo_edit(problem: Problem, null: float) -> Tensor:
    """EvoEdit: as AlphaEdit, but a direction that an edit has used is taken from the projector."""
    _, vectors = problem.spectrum
    basis = vectors[:, : int(null * len(vectors))]
    projector, delta = basis @ basis.T, torch.zeros_like(problem.weight)
    for key, wanted in zip(problem.mean_keys, problem.deltas, strict=True):
        seen = projector @ key
        square = key @ seen
        delta += torch.outer(wanted - delta @ key, seen / (square + 1))
        projector.addr_(seen, seen, alpha=-1 / float(square))
    return delta


def revive(problem: Problem, lam: float, energy: float) -> Tensor:
    """REVIVE: no part of an update in W0's leading singular directions, up to ``energy``."""
    left, values, right = torch.linalg.svd(problem.weight, full_matrices=False)
    n = _leading(values.square(), energy)
    left, right = left[:, :n], right[:n]

    def outside(update: Tensor, step: int) -> Tensor:
        update = update - left @ (left.T @ update)
        return update - (update @ right.T) @ right

    return _Steps(problem, _accumulated(problem, lam)).run(outside)


def sphere(problem: Problem, lam: float, energy: float = 0.5, share: float = 0.5) -> Tensor:
    """SPHERE: ``share`` less of an update in the leading directions of the weight as it is now."""
    steps = _Steps(problem, _accumulated(problem, lam))
    basis = torch.zeros(problem.weight.shape[1], 0, dtype=torch.float64)

    def damped(update: Tensor, step: int) -> Tensor:
        nonlocal basis
        if step % _EVERY == 0:
            now = problem.weight + steps.delta
            now = now / now.norm(dim=0, keepdim=True)
            values, vectors = torch.linalg.eigh(now.T @ now)
            n = _leading(values.flip(0), energy)
            basis = vectors[:, -n:]
        return update - share * (update @ basis) @ basis.T

    return steps.run(damped)


def anchored(problem: Problem, policy: Policy) -> Tensor:
    """NAS: every value is given the mean norm of all (pilots on the clean model).

    One of more than twice that is skipped. The pilots are the edits themselves.
    """
    before = problem.mean_keys @ problem.weight.T
    values = before + problem.deltas
    norms = values.norm(dim=1)
    pilots = norms[norms <= norms.quantile(0.95)].mean()
    moved = values * (pilots / norms)[:, None] - before
    deltas = torch.where((norms > 2 * pilots)[:, None], torch.zeros_like(moved), moved)
    return policy(replace(problem, deltas=deltas))


def scaled(problem: Problem, policy: Policy, share: float) -> Tensor:
    """Each offset made less: a value is searched until it is said with much to spare."""
    return policy(replace(problem, deltas=share * problem.deltas))


def _accumulated(problem: Problem, lam: float, ridge: float = 0.0) -> Tensor:
    moment = lam * problem.moment
    moment.diagonal().add_(ridge * moment.diagonal().mean())
    return torch.linalg.inv(moment)


def _leading(squares: Tensor, energy: float) -> int:
    """How many of the descending squares make up so much of their sum."""
    shares = squares.cumsum(0) / squares.sum()
    return int((shares < energy).sum()) + 1


POLICIES: dict[str, Policy] = {
    **{f"joint, lam {lam:g}": partial(joint, lam=lam) for lam in (1e-6, 30, 100, 300, 1000, 3000)},
    **{
        f"joint, lam {lam:g}, {kind} keys": partial(joint, lam=lam, kind=kind)
        for kind in ("prompt", "mean", "middle")
        for lam in (100.0, 300.0, 1000.0)
    },
    **{f"MEMIT_seq, lam {lam:g}": partial(memit_seq, lam=lam) for lam in (30, 100, 300)},
    **{f"ENCORE, ridge {r:g}": partial(memit_seq, lam=100.0, ridge=r) for r in (0.03, 0.3)},
    **{
        f"AlphaEdit, null {null:g}, ridge {ridge:g}": partial(alpha_edit, null=null, ridge=ridge)
        for null in (0.5, 0.9)
        for ridge in (0.01, 0.1)
    },
    "BetaEdit": partial(alpha_edit, null=0.9, ridge=0.01, drift=100.0),
    **{f"EvoEdit, null {null:g}": partial(evo_edit, null=null) for null in (0.5, 0.9)},
    **{f"REVIVE, energy {e:g}": partial(revive, lam=100.0, energy=e) for e in (0.1, 0.3)},
    "SPHERE": partial(sphere, lam=100.0),
    "norm anchors": partial(anchored, policy=partial(joint, lam=100.0)),
    "norm anchors, AlphaEdit": partial(anchored, policy=partial(alpha_edit, null=0.9, ridge=0.01)),
    **{
        f"values x {s:g}, prompt keys, lam {lam:g}": partial(
            scaled, policy=partial(joint, lam=lam, kind="prompt"), share=s
        )
        for s in (0.5, 0.6, 0.8)
        for lam in (100.0, 300.0)
    },
}
