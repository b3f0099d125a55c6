"""The gate: the offset of the nearest subject is added, whole, where it is near enough.

Near is a cosine in the coordinates in which the second moment of h is the identity; and the subject
must be told from its last tokens in other company. No number of subjects wears it out, as there is
nothing that they share; but it needs this code at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.beside.entry import Entry
    from rome_fast.beside.group import Subject

# docs/forms.md has the study.
NEAR, APART = 0.7, 0.5


@dataclass(frozen=True, eq=False)
class GateRows:
    """n subjects, in float32.

    Attributes:
        whitener: [d_model, d_model], L^-1 for S = L L^T.
        centres: [n, d_model], unit vectors L^-1 m.
        apart: [n, d_model]; down: [n, d_value].
    """

    whitener: Tensor
    centres: Tensor
    apart: Tensor
    down: Tensor

    def nearest(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """(number of the nearest subject, whether it is the subject) of each h [..., d_model]."""
        white = h @ self.whitener.T
        cosines = torch.nn.functional.normalize(white, dim=-1) @ self.centres.T
        best, number = cosines.max(-1)
        told = (h * self.apart[number]).sum(-1)
        return number, (best > NEAR) & (told > APART)

    def answer(self, h: Tensor) -> Tensor:
        """What is added to the MLP's output: [..., d_model] -> [..., d_value]."""
        number, is_subject = self.nearest(h)
        return self.down[number] * is_subject[..., None]


def gate_rows(entry: Entry, subjects: Sequence[Subject]) -> GateRows:
    """The rows of all subjects, on the CPU."""
    eye = torch.eye(len(entry.factor), dtype=torch.float64)
    whitener = torch.linalg.solve_triangular(entry.factor, eye, upper=False)
    means = torch.stack([subject.own.double().mean(0) for subject in subjects])
    centres = torch.nn.functional.normalize(means @ whitener.T, dim=-1)
    apart = torch.stack([subject.apart for subject in subjects])
    down = torch.stack([subject.delta.float() for subject in subjects])
    return GateRows(whitener.float(), centres.float(), apart.float(), down)
