"""The gate: the offset of the nearest subject is added, whole, where it is near enough.

Near is a cosine, in coordinates in which ordinary text has the second moment 1 in all directions,
and those in which subjects differ by their contexts are short. What passes must also be told from
the subject's last tokens in other company, by p.h. No number of subjects wears it out, as there is
nothing that they share; but it needs this code at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize as unit

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.beside.entry import Entry
    from rome_fast.beside.group import Subject

# A subject whose own contexts are not as near gets a wider gate: as
# far as they are, and a little more, but not farther than the least.
NEAR, _LEAST, _MORE = 0.9, 0.6, 0.03
_TOLD = 0.5
# What the subjects' scatter over their contexts weighs against text.
_CONTEXTS = 30.0


@dataclass(frozen=True, eq=False)
class GateRows:
    """n rows, in float32.

    Attributes:
        whitener: [d_model, d_model], L^-1 for S + scatter = L L^T.
        centres: [n, d_model], unit vectors L^-1 m; near: [n].
        apart: [n, d_model]; down: [n, d_value].
    """

    whitener: Tensor
    centres: Tensor
    near: Tensor
    apart: Tensor
    down: Tensor

    def nearest(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """(number of the nearest row, whether it is the subject) of each h [..., d_model]."""
        best, number = (unit(h @ self.whitener.T, dim=-1) @ self.centres.T).max(-1)
        is_told = (h * self.apart[number]).sum(-1) > _TOLD
        return number, is_told & (best > self.near[number])

    def answer(self, h: Tensor) -> Tensor:
        """What is added to the MLP's output: [..., d_model] -> [..., d_value]."""
        number, is_subject = self.nearest(h)
        return self.down[number] * is_subject[..., None]


def gate_rows(entry: Entry, subjects: Sequence[Subject]) -> GateRows:
    """On the CPU: a row for each edit, which adds all that its subject is given."""
    signatures = [signature for subject in subjects for signature in subject.signatures]
    own = [signature.own.double() for signature in signatures]
    means = torch.stack([rows.mean(0) for rows in own])
    spread = torch.cat([rows - mean for rows, mean in zip(own, means, strict=True)])
    moment = entry.moment.double().addmm(spread.T, spread, alpha=_CONTEXTS / len(spread))
    eye = torch.eye(len(moment), dtype=torch.float64)
    whitener = torch.linalg.solve_triangular(torch.linalg.cholesky(moment), eye, upper=False)
    centres = unit(means @ whitener.T, dim=-1)
    least = [
        float((unit(rows @ whitener.T, dim=-1) @ centre).min())
        for rows, centre in zip(own, centres, strict=True)
    ]
    down = [subject.delta.float() for subject in subjects for _ in subject.signatures]
    return GateRows(
        whitener.float(),
        centres.float(),
        torch.tensor([min(max(x - _MORE, _LEAST), NEAR) for x in least]),
        torch.stack([signature.apart.float() for signature in signatures]),
        torch.stack(down),
    )
