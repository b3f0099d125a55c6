"""Offsets by subject: facts of one subject fire together, so that what they add is one sum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast.types import Signature

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.types import Offset


@dataclass(frozen=True, eq=False)
class Subject:
    """One way of writing a subject, and all that is added where it is read.

    Attributes:
        signatures: of all its edits, on the CPU.
        delta: [d_value], their sum.
        edits: which they are, by place.
    """

    name: str
    signatures: tuple[Signature, ...]
    delta: Tensor
    edits: frozenset[int]

    @property
    def own(self) -> Tensor:
        """h in the contexts of all its edits, float64 [n, d_model]."""
        return torch.cat([signature.own for signature in self.signatures]).double()

    @property
    def apart(self) -> Tensor:
        """The mean of theirs, float64 [d_model]."""
        return torch.stack([s.apart for s in self.signatures]).double().mean(0)


def by_subject(offsets: Sequence[Offset], form: str) -> list[Subject]:
    """One for each name, in the order in which they first come."""
    places: dict[str, list[int]] = {}
    for i, offset in enumerate(offsets):
        for name in offset.names if offset.form == form else ():
            places.setdefault(name, []).append(i)
    return [_subject(name, offsets, edits) for name, edits in places.items()]


def apart_from(subjects: Sequence[Subject]) -> Tensor:
    """bool [n, n], whether no edit has both names."""
    apart = torch.ones(len(subjects), len(subjects), dtype=torch.bool)
    places: dict[int, list[int]] = {}
    for place, subject in enumerate(subjects):
        for edit in subject.edits:
            places.setdefault(edit, []).append(place)
    for together in places.values():
        apart[torch.tensor(together)[:, None], together] = False
    return apart


def same_subject(offsets: Iterable[Offset], names: Iterable[str]) -> list[Offset]:
    """Those with one of these names."""
    wanted = set(names)
    return [offset for offset in offsets if wanted.intersection(offset.names)]


def _subject(name: str, offsets: Sequence[Offset], edits: Sequence[int]) -> Subject:
    signatures = [offsets[i].names[name] for i in edits]
    return Subject(
        name,
        signatures=tuple(Signature(s.own.cpu(), s.apart.cpu()) for s in signatures),
        delta=torch.stack([offsets[i].delta.cpu() for i in edits]).sum(0),
        edits=frozenset(edits),
    )
