"""The Session's ledger: log, weight, retained keys and journal, which always agree.

A change counts once it is in the journal; if writing it there fails, everything is as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rome_fast.editlog import EditLog, LoggedEdit, Rejection
from rome_fast.editlog.journal import Record
from rome_fast.editlog.records import offsets_of
from rome_fast.editlog.solved import asked_anew, updates_of
from rome_fast.errors import SessionError
from rome_fast.session.journal import Journal
from rome_fast.types import JointConstraint
from rome_fast.update.fold import Fold
from rome_fast.update.undo import WeightHistory, WeightState

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.beside.module import Beside
    from rome_fast.session.retention import RetainedMoment
    from rome_fast.session.spread import Spread
    from rome_fast.types import EditRequest, Offset, RankOneUpdate


class Ledger:
    """Edits of one weight.

    Args:
        retained: None where nothing is retained.
        journal: None where there is none; its records are already in ``log`` and ``keys``.
        keys: [m, d_key] of each edit, by its number.
    """

    def __init__(
        self,
        log: EditLog,
        history: WeightHistory,
        retained: RetainedMoment | None,
        journal: Journal | None,
        keys: dict[int, Tensor],
        spread: Spread,
    ) -> None:
        self._spread = spread
        self.log, self.history, self.retained = log, history, retained
        self._fold = Fold()
        self._journal, self._keys = journal, keys
        self._beside: Beside | None = None
        self._earlier: tuple[Offset, ...] = ()
        self._held = log, log.holding()
        # Numbers of edits by fact, taken out or not; of the first ``_n_in_facts`` edits.
        self._facts: dict[object, list[int]] = {}
        self._n_in_facts = 0
        self._weight_name = f"{history.projection.name}.weight"
        self._left: WeightState | None = None
        self._settle()
        self._left = WeightState.of(history.weight)

    @property
    def n_recorded(self) -> int:
        """How many requests have an edit or a rejection; it only grows."""
        return len(self.log.edits) + len(self.log.rejections)

    def stand(self, beside: Beside) -> None:
        """Let this module hold the offsets of the log, from now on."""
        if self._beside is None:
            # What others have put there before is a part of the model, like their updates.
            self._beside, self._earlier = beside, beside.offsets
            self._settle()

    def holding(self) -> list[LoggedEdit]:
        """As ``log.holding()``, but kept until the log changes."""
        if self._held[0] is not self.log:
            self._held = self.log, self.log.holding()
        return self._held[1]

    def same_fact(self, request: EditRequest) -> tuple[int, ...]:
        """As ``log.same_fact()``, but through an index by fact."""
        for edit in self.log.edits[self._n_in_facts :]:
            self._facts.setdefault(edit.request.fact, []).append(edit.edit_id)
        self._n_in_facts = len(self.log.edits)
        numbers = self._facts.get(request.fact, [])
        return tuple(number for number in numbers if number not in self.log.taken_out)

    def check_weight(self) -> None:
        """Raise SessionError if anything but this ledger has written to the weight."""
        history, left = self.history, self._left
        if left is None:
            raise SessionError(
                f"{self._weight_name} could not be put back after an error: load the model again, "
                "and apply the log"
            )
        if self._beside is not None and not self._beside.is_in_place:
            raise SessionError(
                f"what stood beside {self._weight_name} was taken away or replaced outside of the "
                "Session: load the model again, and apply the log"
            )
        now = WeightState.of(history.weight)
        if history.projection.weight is not history.weight or now.place != left.place:
            raise SessionError(
                f"{self._weight_name} was replaced or cast outside of the Session: load the model "
                "again, and apply the log"
            )
        if not now.same_bits(left):
            raise SessionError(
                f"{self._weight_name} was changed outside of the Session: load the model again, "
                "and apply the log"
            )

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """After an error inside, put weight and retained keys back to what the log says."""
        stamp = self.history.stamp
        try:
            yield
        except BaseException:
            self._left = None  # until it is put back
            self._settle(rewrite=self.history.stamp != stamp)
            self._left = WeightState.of(self.history.weight)
            raise
        self._left = WeightState.of(self.history.weight)

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """While open, no edit is in the model; afterwards it has the bits it had."""
        with self.attempt(), self.history.as_if([]):
            if self._beside is None:
                yield
                return
            before = self._beside.offsets
            self._beside.set(self._earlier)
            try:
                yield
            finally:
                self._beside.set(before)

    @contextmanager
    def alone(self, edits: Sequence[LoggedEdit]) -> Iterator[Fold]:
        """While open, of the edits in the weight only these are there; yields how they are solved.

        Afterwards the weight has the bits it had.
        """
        fold = Fold()
        with self.history.as_if(updates_of(edits, fold)):
            yield fold

    def solved(self, edits: Sequence[LoggedEdit]) -> list[RankOneUpdate]:
        """The updates of these edits, if they were all that hold; nothing is written."""
        return updates_of(edits, self._fold)

    def output(self, edits: Sequence[LoggedEdit], key: Tensor) -> Tensor:
        """By how much these edits, if all that hold are they, move the output at a key."""
        self.solved(edits)
        return self._fold.output(key)

    def solved_edits(self) -> list[LoggedEdit]:
        """The edits that hold and are solved as one."""
        return [edit for edit in self.holding() if isinstance(edit.update, JointConstraint)]

    def spread(self) -> float | None:
        """How far the output on ordinary text has moved; None where nothing is solved as one."""
        return self._spread.of(self._fold.spread) if self.solved_edits() else None

    def shares(self) -> list[float]:
        """How much of what each edit that is solved as one asks for it is given."""
        return self._fold.shares()

    def taken(self) -> list[float]:
        """What the last edit that was solved takes from each before it, of what that asks for."""
        return self._fold.taken()

    def set_aside(self, replaced: Iterable[int], near: Iterable[int] = ()) -> None:
        """Inside ``attempt``: take edits out of the weight, and release the keys of others.

        Only for the time being: what ``add`` then records decides.
        """
        self._settle(self.without(replaced), released=set(near))

    def put(self, edits: Sequence[LoggedEdit]) -> None:
        """Inside ``attempt``: make exactly these the edits in the model, until ``add``."""
        self._settle(edits)

    def without(self, replaced: Iterable[int]) -> list[LoggedEdit]:
        """The edits that hold, but for these."""
        gone = set(replaced)
        return [edit for edit in self.holding() if edit.edit_id not in gone]

    def add(self, edits: Sequence[LoggedEdit], keys: Sequence[Tensor | None]) -> None:
        """Inside ``attempt``: write down edits whose updates are in the model already.

        Args:
            keys: [m, d_key] of each edit of the weight; None for the others.
        """
        records, new = [], self.log.copy()
        if self._beside is not None and self._weight_name not in new.entries:
            new.entries[self._weight_name] = self._beside.entry
            fields = {"kind": "entry", "weight": self._weight_name}
            records.append(Record(fields, self._beside.entry.tensors()))
        for edit, key in zip(edits, keys, strict=True):
            tensors = edit.tensors()
            if self.retained is not None and key is not None:
                self._keys[edit.edit_id] = tensors["keys"] = key
            records.append(Record({"kind": "edit", "edit": edit.to_json()}, tensors))
        new.edits.extend(edits)
        replaced = {number for edit in edits for number in edit.replaced}
        held = [*self.holding(), *edits]
        if replaced:
            held = [edit for edit in held if edit.edit_id not in replaced]
        self._settle(held)
        self._write_down(new, records)
        self._held = new, held

    def ask_anew(self, residuals: Mapping[int, Tensor]) -> None:
        """Inside ``attempt``: let edits that are solved as one ask for these, by number."""
        new = self.log.copy()
        new.edits = asked_anew(self.log.edits, residuals)
        tensors = {str(number): residual for number, residual in residuals.items()}
        self._settle(held := new.holding())
        self._write_down(new, [Record({"kind": "asked_anew"}, tensors)])
        self._held = new, held

    def take_out(self, numbers: Iterable[int]) -> None:
        """Make exactly these edits, by number, the ones taken out; the weight follows."""
        new = self.log.copy()
        new.taken_out = set(numbers)
        with self.attempt():
            out = sorted(new.taken_out - self.log.taken_out)
            back = sorted(self.log.taken_out - new.taken_out)
            record = Record({"kind": "taken_out", "out": out, "back": back}, {})
            self._write_down(new, [record])
            self._settle()

    def reject(self, rejection: Rejection) -> None:
        """Write down a request that was refused."""
        new = self.log.copy()
        new.rejections.append(rejection)
        self._write_down(new, [Record({"kind": "rejection", "rejection": rejection.to_json()}, {})])

    def note(self, fields: Mapping[str, Any]) -> None:
        """Write a record into the journal that changes no edit."""
        self._write_down(self.log, [Record(fields, {})])

    def _write_down(self, log: EditLog, records: Sequence[Record]) -> None:
        """Write records and make ``log`` the current one; do neither on an error or Ctrl-C."""
        before, journal = self.log, self._journal
        end = 0 if journal is None else journal.end
        try:
            if journal is not None:
                journal.append(*records)
            self.log = log
        except BaseException:
            self.log = before
            if journal is not None:
                journal.cut_back(end)
            raise

    def _settle(
        self,
        edits: Sequence[LoggedEdit] | None = None,
        released: Iterable[int] = (),
        rewrite: bool = False,
    ) -> None:
        """Make weight and retained keys those of ``edits``, by default of the log."""
        edits = self.holding() if edits is None else edits
        updates, now = self.solved(edits), self.history.updates
        if rewrite or tuple(updates[: len(now)]) != now:
            self.history.replay(updates)
        else:
            for update in updates[len(now) :]:
                self.history.add(update)
        if self._beside is not None:
            self._beside.set([*self._earlier, *offsets_of(edits)])
        if self.retained is not None:
            gone = {*released, *(n for edit in edits for n in edit.released)}
            keys = {e.edit_id: self._keys[e.edit_id] for e in edits if e.form == "weight"}
            self.retained.retain(keys, gone)
