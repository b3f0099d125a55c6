"""The gate: the offset of the nearest subject is added, whole, where it is near enough.

Near is a cosine in the coordinates in which the second moment of h is the identity, squared, times
p.h, which tells the subject from its last tokens in other company. No number of subjects wears it
out, as there is nothing that they share; but it needs this code at run time.
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
NEAR, _LEAST, _MORE = 0.45, 0.2, 0.03


@dataclass(frozen=True, eq=False)
class GateRows:
    """n rows, in float32.

    Attributes:
        whitener: [d_model, d_model], L^-1 for S = L L^T.
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
        cosines = unit(h @ self.whitener.T, dim=-1) @ self.centres.T
        best, number = cosines.max(-1)
        return number, _nearness(best, h, self.apart[number]) > self.near[number]

    def answer(self, h: Tensor) -> Tensor:
        """What is added to the MLP's output: [..., d_model] -> [..., d_value]."""
        number, is_subject = self.nearest(h)
        return self.down[number] * is_subject[..., None]


def gate_rows(entry: Entry, subjects: Sequence[Subject]) -> GateRows:
    """On the CPU: a row for each edit, which adds all that its subject is given."""
    eye = torch.eye(len(entry.factor), dtype=torch.float64)
    whitener = torch.linalg.solve_triangular(entry.factor, eye, upper=False)
    signatures = [signature for subject in subjects for signature in subject.signatures]
    own = [unit(signature.own.double() @ whitener.T, dim=-1) for signature in signatures]
    means = torch.stack([signature.own.double().mean(0) for signature in signatures])
    centres = unit(means @ whitener.T, dim=-1)
    near = [
        float(_nearness(white @ centre, s.own.double(), s.apart.double()).min()) - _MORE
        for white, centre, s in zip(own, centres, signatures, strict=True)
    ]
    down = [subject.delta.float() for subject in subjects for _ in subject.signatures]
    return GateRows(
        whitener.float(),
        centres.float(),
        torch.tensor([min(max(x, _LEAST), NEAR) for x in near]),
        torch.stack([signature.apart.float() for signature in signatures]),
        torch.stack(down),
    )


def _nearness(cosines: Tensor, h: Tensor, apart: Tensor) -> Tensor:
    """1 at the subject itself."""
    return cosines.clamp(min=0).square() * (h * apart).sum(-1)
