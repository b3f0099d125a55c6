"""Directions that answer to one subject and to nothing else, in closed form.

h is what enters an MLP. c is the direction with c.h = 1 on every token: least squares over ordinary
text, c = S^-1 E[h] with S = E[h h^T]. w_i is the direction of least response to text and to the
other edits' h, with response 1 to its own: S' = S + weight * mean_j h_j h_j^T, w_i = S'^-1 h_i /
(h_i . S'^-1 h_i) (docs/derivation.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import SecondMomentError

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.moment.second_moment import SecondMoment

# What the other edits' h weigh against all text together.
AGAINST_EDITS = 3.0


@dataclass(frozen=True, eq=False)
class Entry:
    """Statistics of what enters an MLP, float64.

    Attributes:
        moment: S = E[h h^T], [d_model, d_model], with its ridge.
        constant: c, [d_model].
    """

    moment: Tensor
    constant: Tensor

    @classmethod
    def of(cls, augmented: SecondMoment) -> Entry:
        """From the second moment of [h; 1], [d_model + 1, d_model + 1].

        Raises:
            SecondMomentError: fewer tokens than d_model.
        """
        d_model = augmented.d_key - 1
        if augmented.count < d_model:
            raise SecondMomentError(
                f"{augmented.count} tokens are too few for directions of d_model {d_model}: "
                "collect one a dimension or more"
            )
        whole = augmented.moment().double()
        moment, mean = whole[:d_model, :d_model].clone(), whole[:d_model, d_model]
        ridge = augmented.ridge() * moment.diagonal().mean()
        moment.diagonal().add_(ridge)
        return cls(moment, torch.cholesky_solve(mean[:, None], torch.linalg.cholesky(moment))[:, 0])


def directions(entry: Entry, means: Tensor, against: Tensor) -> Tensor:
    """w of each edit, [n, d_model], with w_i . means_i = 1.

    Args:
        means: h of each edit, the mean over its contexts, float64 [n, d_model].
        against: h of other tokens to be told apart from, [m, d_model].
    """
    moment = entry.moment.clone()
    for others in (means, against):
        if len(others):
            moment.addmm_(others.T, others, alpha=AGAINST_EDITS / len(others))
    solved = torch.cholesky_solve(means.T, torch.linalg.cholesky(moment)).T
    return solved / (solved * means).sum(-1, keepdim=True)
