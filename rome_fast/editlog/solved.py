"""Edits of one weight that are solved as one, as a log has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rome_fast.types import JointConstraint, RankOneUpdate
from rome_fast.update.fold import Fold

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.editlog.edits import LoggedEdit
    from rome_fast.types import EditRequest


def updates_of(edits: Sequence[LoggedEdit], fold: Fold | None = None) -> list[RankOneUpdate]:
    """The updates of those that write into the weight, in order.

    Args:
        edits: all that hold: those that are solved as one are solved here.
        fold: where they are solved, which may have solved the first of them before.
    """
    solved = iter((fold or Fold()).solve(constraints_of(edits)))
    found = []
    for edit in edits:
        if isinstance(edit.update, RankOneUpdate):
            found.append(edit.update)
        elif isinstance(edit.update, JointConstraint):
            found.append(next(solved))
    return found


def constraints_of(edits: Sequence[LoggedEdit]) -> list[JointConstraint]:
    """What is solved as one: of facts of one subject, all with the output of the latest."""
    latest: dict[int, Tensor] = {}
    for edit in edits:
        if isinstance(edit.update, JointConstraint):
            latest |= dict.fromkeys((*edit.carries, edit.edit_id), edit.update.residual)
    return [
        edit.update
        if edit.update.residual is latest[edit.edit_id]
        else replace(edit.update, residual=latest[edit.edit_id])
        for edit in edits
        if isinstance(edit.update, JointConstraint)
    ]


def asked_anew(edits: Iterable[LoggedEdit], residuals: Mapping[int, Tensor]) -> list[LoggedEdit]:
    """The edits, of which those with these numbers ask for other outputs."""
    made = []
    for edit in edits:
        if edit.edit_id in residuals and isinstance(edit.update, JointConstraint):
            update = replace(edit.update, residual=residuals[edit.edit_id])
            edit = replace(edit, update=update)
        made.append(edit)
    return made


def about_subject(edits: Sequence[LoggedEdit], request: EditRequest) -> list[LoggedEdit]:
    """Edits that are solved as one, of other facts of this request's subject."""
    return [
        edit
        for edit in edits
        if isinstance(edit.update, JointConstraint)
        and edit.request.same_subject(request)
        and not edit.request.same_fact(request)
    ]
