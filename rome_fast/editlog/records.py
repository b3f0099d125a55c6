"""What an edit log holds: edits, refusals, and which of the edits hold. Plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rome_fast.editlog.base import Base
from rome_fast.editlog.edits import LoggedEdit, Rejection
from rome_fast.editlog.solved import updates_of
from rome_fast.types import EditRequest, Offset, RankOneUpdate

if TYPE_CHECKING:
    from rome_fast.beside.entry import Entry


@dataclass(eq=False)
class LogRecords:
    """The edits of a model, in order, and which of them hold.

    An edit holds unless it was taken out, or replaced by a later one that holds. Each takes about
    (d_key + d_value) * 4 bytes; an Offset, ((n_contexts + 1) * d_model + d_value) * 4.

    Attributes:
        base: the unedited model.
        edits: all that were made, in order.
        taken_out: numbers of those that were undone or reverted.
        rejections: requests that were refused.
        entries: by weight, the statistics that its Offsets are set with.
    """

    base: Base
    edits: list[LoggedEdit] = field(default_factory=list)
    taken_out: set[int] = field(default_factory=set)
    rejections: list[Rejection] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many edits hold."""
        return len(self.holding())

    @property
    def next_id(self) -> int:
        """The number that the next edit gets."""
        return self.edits[-1].edit_id + 1 if self.edits else 1

    def kept(self) -> list[LoggedEdit]:
        """The edits that were not taken out, replaced by a later one or not, in order."""
        return [edit for edit in self.edits if edit.edit_id not in self.taken_out]

    def holding(self) -> list[LoggedEdit]:
        """The edits that are in the model, in order."""
        kept = self.kept()
        replaced = {number for edit in kept for number in edit.replaced}
        return [edit for edit in kept if edit.edit_id not in replaced]

    def updates(self, weight_name: str) -> list[RankOneUpdate]:
        """The updates that are in one weight, in order."""
        return updates_of([e for e in self.holding() if e.weight_name == weight_name])

    def offsets(self, weight_name: str) -> list[Offset]:
        """The offsets that stand beside one weight, in order."""
        return offsets_of(edit for edit in self.holding() if edit.weight_name == weight_name)

    def same_fact(self, request: EditRequest) -> tuple[int, ...]:
        """Numbers of the edits of this subject and prompt that were not taken out."""
        return tuple(edit.edit_id for edit in self.kept() if edit.request.same_fact(request))


def offsets_of(edits: Iterable[LoggedEdit]) -> list[Offset]:
    """The offsets of those that stand beside it."""
    return [edit.update for edit in edits if isinstance(edit.update, Offset)]


def by_weight(edits: Sequence[LoggedEdit]) -> dict[str, list[LoggedEdit]]:
    """Group edits by weight."""
    groups: dict[str, list[LoggedEdit]] = {}
    for edit in edits:
        groups.setdefault(edit.weight_name, []).append(edit)
    return groups
