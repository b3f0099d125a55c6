"""Directions that answer to one subject and to nothing else, in closed form (docs/derivation.md).

All are of least mean squared response to ordinary text and to what they are to be told apart from,
among those with mean response 1 to the subject in its own contexts:

    w = S'^-1 m / (m . S'^-1 m),   m the mean of the own h,   S' = S + sum of weight * h h^T.

The own h, less their mean, are in S' too, so that all contexts get the same response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.beside.entry import Entry

# What a group of h weighs against all text together.
OTHER_SUBJECTS = 3.0
OTHER_COMPANY = 0.03
SPREAD = 1.0


def direction_apart(entry: Entry, own: Tensor, company: Tensor) -> Tensor:
    """p, [d_model], which tells a subject from its last tokens in other company.

    Args:
        own: h of the subject in its contexts, [n, d_model].
        company: h of its last tokens behind other texts, [m, d_model]; m may be 0.
    """
    mean = own.mean(0)
    rows = [(own - mean) * (SPREAD / len(own)) ** 0.5]
    if len(company):
        rows.append(company * (OTHER_COMPANY / len(company)) ** 0.5)
    added = torch.cat(rows)
    solved = torch.cholesky_solve(torch.cat([mean[:, None], added.T], 1), entry.factor)
    return _corrected(solved[:, 0], solved[:, 1:], added, torch.ones(len(added)), mean)


def directions(entry: Entry, own: Sequence[Tensor], apart: Tensor) -> Tensor:
    """w of each subject, [n, d_model].

    Args:
        own: h of each subject in its contexts, float64 [n_contexts, d_model].
        apart: bool [n, n], which of the others each is to be told apart from.
    """
    means = torch.stack([rows.mean(0) for rows in own])
    weight = OTHER_SUBJECTS / len(means)
    moment = entry.moment.double().addmm(means.T, means, alpha=weight)
    factor = torch.linalg.cholesky(moment)
    spreads = [
        (rows - mean) * (SPREAD / len(rows)) ** 0.5 for rows, mean in zip(own, means, strict=True)
    ]
    # One product for all: thousands of small ones would take longer.
    solved = torch.cholesky_solve(torch.cat([means, *spreads]).T, factor).T
    solved_means, *solved_spreads = solved.split([len(means), *map(len, spreads)])
    found = []
    for i, (mean, spread, z) in enumerate(zip(means, spreads, solved_spreads, strict=True)):
        rows, columns, signs = [spread], [z], [torch.ones(len(spread))]
        for j in (~apart[i]).nonzero()[:, 0].tolist():
            if j != i:  # it is in the moment, and is taken out again
                rows.append(means[j : j + 1] * weight**0.5)
                columns.append(solved_means[j : j + 1] * weight**0.5)
                signs.append(-torch.ones(1))
        added = torch.cat(rows)
        found.append(
            _corrected(solved_means[i], torch.cat(columns).T, added, torch.cat(signs), mean)
        )
    return torch.stack(found)


def _corrected(
    solved_mean: Tensor, solved: Tensor, added: Tensor, signs: Tensor, mean: Tensor
) -> Tensor:
    """(S + sum of sign_i a_i a_i^T)^-1 m at response 1, from S^-1 m and S^-1 a_i (Woodbury).

    Args:
        solved: [d_model, n] for ``added`` [n, d_model].
    """
    small = torch.diag(signs.to(added)) + added @ solved
    w = solved_mean - solved @ torch.linalg.solve(small, added @ solved_mean)
    return w / (w @ mean)
