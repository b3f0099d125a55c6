"""The edit log: W = W0 + sum of v u^T over the edits that hold, by definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rome_fast.editlog import files
from rome_fast.editlog.applied import AppliedLog
from rome_fast.editlog.convert import converted
from rome_fast.editlog.edits import LoggedEdit
from rome_fast.editlog.lora import LoraExport, write_lora
from rome_fast.editlog.records import LogRecords
from rome_fast.errors import EditLogError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class EditLog(LogRecords):
    """Every edit of a model since it was loaded, and which of them hold.

    An edit holds unless it was taken out, or replaced by a later one that holds. Each takes about
    (d_key + d_value) * 4 bytes; one beside it, ((n_contexts + 1) * d_model + d_value) * 4.

    Attributes:
        base: the unedited model.
        edits: all that were made, in order.
        taken_out: numbers of those that were undone or reverted.
        rejections: requests that were refused.
        entries: by weight, the statistics that the edits beside it are set with.
    """

    def copy(self) -> EditLog:
        """An independent copy."""
        return EditLog(
            self.base,
            list(self.edits),
            set(self.taken_out),
            list(self.rejections),
            dict(self.entries),
        )

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
        for name in self.entries.keys() & other.entries.keys():
            if not self.entries[name].equals(other.entries[name]):
                raise EditLogError(
                    f"the logs cannot be merged: the statistics of what stands beside {name} differ"
                )
        self.base = self.base.merged(other.base)
        self.entries |= other.entries
        numbers: dict[int, int] = {}
        for edit in other.holding():
            numbers[edit.edit_id] = self.next_id
            replaced = self.same_fact(edit.request)
            carries = tuple(numbers[number] for number in edit.carries if number in numbers)
            made = replace(edit, edit_id=self.next_id, replaced=replaced, carries=carries)
            self.edits.append(made)

    def apply(self, model: PreTrainedModel) -> AppliedLog:
        """Write the edits that hold into an unedited model, in place.

        Returns:
            Its ``revert()`` puts the weights back, bit for bit.

        Raises:
            EditLogError: the model is another one, or edited already; names the weight. Nothing
                was written.
        """
        return AppliedLog.of(self, model)

    def as_form(self, form: str, model: PreTrainedModel, tok: PreTrainedTokenizerBase) -> EditLog:
        """The edits that hold, in another form: ``"weight"``, ``"neuron"`` or ``"gate"``.

        The values are those of this log; keys and statistics are read from the model, with the
        library's own contexts. Into the weight all are solved as one least change.

        Args:
            model: the unedited model.

        Raises:
            EditLogError: the model is another one, or edited already.
            EditRejectedError: the keys of two edits are too near to be solved together.
        """
        return EditLog(**vars(converted(self, form, model, tok)))

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
        return write_lora(self, Path(path), max_rank)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all: tensors of each edit, all else as JSON.

        Raises:
            EditLogError: the file is a Session's journal.
            OSError: it cannot be written.
        """
        files.write(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> EditLog:
        """Read a file of ``save``, or the journal of a Session.

        Raises:
            EditLogError: no such file, another kind of file, or damaged; names the path.
        """
        return cls(**vars(files.read(Path(path))))

    def show(self, last: int | None = None) -> str:
        """One line per edit, oldest first; ``last``: only the last so many."""
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
    how = "norm" if edit.form == "weight" else f"{edit.form} of norm"
    return f"{edit.edit_id:>6}  {edit.request}{said}, {how} {edit.update.norm:.3g}{state}"


def attach(model: PreTrainedModel, path: str | Path) -> AppliedLog:
    """Put the edits of a log's file into an unedited model, as they were: gates as gates.

    Returns:
        Its ``revert()`` takes them away.

    Raises:
        EditLogError: as ``EditLog.load`` and ``EditLog.apply``; nothing was changed.
    """
    return EditLog.load(path).apply(model)
