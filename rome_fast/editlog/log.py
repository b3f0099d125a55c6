"""The edit log: W = W0 + sum of v u^T over the edits that hold, by definition."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.editlog.base import Base
from rome_fast.errors import EditLogError, EditRejectedError, RomeFastError
from rome_fast.types import EditRequest, RankOneUpdate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rome_fast.editlog.applied import AppliedLog
    from rome_fast.editlog.lora import LoraExport


@dataclass(frozen=True, eq=False)
class LoggedEdit:
    """One edit that was made.

    Attributes:
        edit_id: 1, 2, ... in the order of the edits.
        replaced: earlier edits of the same fact; they do not hold while this one does.
        released: earlier edits whose keys a Session does not retain while this one holds.
        numbers: what was measured when it was made; plain numbers, texts and lists.
        time: seconds since the epoch.
    """

    edit_id: int
    request: EditRequest
    weight_name: str
    update: RankOneUpdate
    replaced: tuple[int, ...] = ()
    released: tuple[int, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Rejection:
    """A request that was refused; the model was left as it was.

    Attributes:
        numbers: what decided, where numbers did; those of an EditRejectedError that are finite.
    """

    request: EditRequest
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    @classmethod
    def of(cls, request: EditRequest, error: RomeFastError) -> Rejection:
        """Of the error that refused the request."""
        decided = error.numbers if isinstance(error, EditRejectedError) else {}
        finite = {name: number for name, number in decided.items() if math.isfinite(number)}
        return cls(request, f"{type(error).__name__}: {error}", finite)


class EditLog:
    """Every edit of a model since it was loaded, and which of them hold.

    An edit holds unless it was taken out, or replaced by a later one that holds. About
    (d_key + d_value) * 4 bytes an edit.

    Attributes:
        base: the unedited model.
        edits: all that were made, in order.
        taken_out: numbers of those that were undone or reverted.
        rejections: requests that were refused.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self.edits: list[LoggedEdit] = []
        self.taken_out: set[int] = set()
        self.rejections: list[Rejection] = []

    def __len__(self) -> int:
        """How many edits hold."""
        return len(self.holding())

    def copy(self) -> EditLog:
        """One that is not changed with this one."""
        log = EditLog(self.base)
        log.edits, log.taken_out = list(self.edits), set(self.taken_out)
        log.rejections = list(self.rejections)
        return log

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
        """What is added to one weight, in order."""
        return [edit.update for edit in self.holding() if edit.weight_name == weight_name]

    def same_fact(self, request: EditRequest) -> tuple[int, ...]:
        """Numbers of the edits of this subject and prompt that were not taken out."""
        return tuple(edit.edit_id for edit in self.kept() if edit.request.same_fact(request))

    def revert(self, edit_id: int) -> None:
        """Take one edit out of the log; ``apply`` then makes the model that never had it.

        Raises:
            EditLogError: there is no such edit, or it is taken out already.
        """
        if edit_id not in {edit.edit_id for edit in self.edits}:
            raise EditLogError(
                f"edit_id {edit_id!r} is not in the log: it has "
                + (f"1 to {self.edits[-1].edit_id}" if self.edits else "no edits")
            )
        if edit_id in self.taken_out:
            raise EditLogError(f"edit_id {edit_id} has already been taken out")
        self.taken_out.add(edit_id)

    def merge(self, other: EditLog) -> None:
        """Add the edits that hold in another log of the same model, behind those of this one.

        They get new numbers. Of two edits of one fact the other log's holds.

        Raises:
            EditLogError: the logs are of different models; nothing was added.
        """
        self.base = self.base.merged(other.base)
        for edit in other.holding():
            replaced = self.same_fact(edit.request)
            self.edits.append(replace(edit, edit_id=self.next_id, replaced=replaced))

    def apply(self, model: PreTrainedModel) -> AppliedLog:
        """Write the edits that hold into an unedited model, in place.

        Returns:
            Its ``revert()`` puts the weights back, bit for bit.

        Raises:
            EditLogError: the model is another one, or edited already; names the weight. Nothing
                was written.
        """
        from rome_fast.editlog.applied import AppliedLog

        return AppliedLog.of(self, model)

    def to_lora(self, path: str | Path, max_rank: int | None = None) -> LoraExport:
        """Write the edits that hold as a PEFT adapter of the unedited model.

        Args:
            path: of the adapter's folder.
            max_rank: beyond it an adapter of this rank approximates the edits; None: exact.

        Returns:
            The ranks, and the error of the approximation.

        Raises:
            EditLogError: no edit holds, or the folder is a model's.
        """
        from rome_fast.editlog.lora import write_lora

        return write_lora(self, Path(path), max_rank)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all: u and v of each edit, all else as JSON.

        Raises:
            EditLogError: the file is a Session's journal.
            OSError: it cannot be written.
        """
        from rome_fast.editlog.files import write

        write(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> EditLog:
        """Read a file of ``save``, or the journal of a Session.

        Raises:
            EditLogError: no such file, another kind of file, or damaged; names the path.
        """
        from rome_fast.editlog.files import read

        return read(Path(path))

    def show(self, last: int | None = None) -> str:
        """A line an edit, oldest first; ``last``: only so many."""
        holding = {edit.edit_id for edit in self.holding()}
        weights = ", ".join(self.base.edited)
        head = f"{len(holding)} edits of {self.base.name} ({weights}); {len(self.edits)} made"
        lines = [f"{head}, {len(self.rejections)} requests refused"]
        for edit in self.edits if last is None else self.edits[len(self.edits) - last :]:
            lines.append(_line(edit, edit.edit_id in holding, edit.edit_id in self.taken_out))
        return "\n".join(lines)


def _line(edit: LoggedEdit, holds: bool, taken_out: bool) -> str:
    state = "" if holds else "   taken out" if taken_out else "   replaced by a later one"
    prob = edit.numbers.get("prob_after")
    said = "" if prob is None else f"   p = {prob:.3f}"
    return f"{edit.edit_id:>6}  {edit.request}{said}, norm {edit.update.norm:.3g}{state}"


def by_weight(edits: Sequence[LoggedEdit]) -> dict[str, list[LoggedEdit]]:
    """Edits of one weight together."""
    groups: dict[str, list[LoggedEdit]] = {}
    for edit in edits:
        groups.setdefault(edit.weight_name, []).append(edit)
    return groups
