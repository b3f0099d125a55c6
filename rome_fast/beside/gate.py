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
from torch.nn.functional import normalize as unit

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.beside.entry import Entry
    from rome_fast.beside.group import Subject

# docs/forms.md has the study. Where a subject's own contexts are farther than that, it is as far as
# they are, and a little more.
NEAR, NEAR_AT_LEAST, _MORE = 0.7, 0.5, 0.05
APART = 0.5


@dataclass(frozen=True, eq=False)
class GateRows:
    """n rows, in float32.

    Attributes:
        whitener: [d_model, d_model], L^-1 for S = L L^T.
        centres: [n, d_model], unit vectors L^-1 m; near: [n], least cosines.
        apart: [n, d_model]; down: [n, d_value].
    """

    whitener: Tensor
    centres: Tensor
    near: Tensor
    apart: Tensor
    down: Tensor

    def nearest(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """(number of the nearest row, whether it is the subject) of each h [..., d_model]."""
        white = h @ self.whitener.T
        cosines = unit(white, dim=-1) @ self.centres.T
        best, number = cosines.max(-1)
        told = (h * self.apart[number]).sum(-1)
        return number, (best > self.near[number]) & (told > APART)

    def answer(self, h: Tensor) -> Tensor:
        """What is added to the MLP's output: [..., d_model] -> [..., d_value]."""
        number, is_subject = self.nearest(h)
        return self.down[number] * is_subject[..., None]


def gate_rows(entry: Entry, subjects: Sequence[Subject]) -> GateRows:
    """The rows of all subjects, on the CPU: one for each edit, with all that its subject is given."""
    eye = torch.eye(len(entry.factor), dtype=torch.float64)
    whitener = torch.linalg.solve_triangular(entry.factor, eye, upper=False)
    signatures = [signature for subject in subjects for signature in subject.signatures]
    own = [unit(signature.own.double() @ whitener.T, dim=-1) for signature in signatures]
    means = torch.stack([signature.own.double().mean(0) for signature in signatures])
    centres = unit(means @ whitener.T, dim=-1)
    near = [float((x @ c).min()) - _MORE for x, c in zip(own, centres, strict=True)]
    down = [subject.delta.float() for subject in subjects for _ in subject.signatures]
    return GateRows(
        whitener.float(),
        centres.float(),
        torch.tensor([min(max(x, NEAR_AT_LEAST), NEAR) for x in near]),
        torch.stack([signature.apart.float() for signature in signatures]),
        torch.stack(down),
    )
