"""A sequence of edits that keeps the model healthy, can prove it, and can undo anything."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rome_fast.beside.widen import widened
from rome_fast.edit import Request, check_many, check_order, parse_many
from rome_fast.editlog import EditLog
from rome_fast.errors import InvalidArgumentError, RevertError, SessionError
from rome_fast.hparams import check_form
from rome_fast.model.open_model import open_model
from rome_fast.session.consolidate import STEPS, Consolidation, Consolidator, check_consolidate
from rome_fast.session.guard import Guard
from rome_fast.session.health import Health, HealthCheck
from rome_fast.session.health_monitor import HealthMonitor
from rome_fast.session.picture import save_checks
from rome_fast.session.sequence import Outcome, RejectedEdit, Sequencer
from rome_fast.session.settings import check_options
from rome_fast.session.start import SessionParts, resume, start_new
from rome_fast.session.stream import EditStream
from rome_fast.types import EditRequest, EditResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.hparams import RomeHparams
    from rome_fast.moment.second_moment import SecondMoment


class Session:
    """Edits one layer of ``model``, one fact after the other, in place.

    Earlier edits are retained, updates out of proportion are held back, a fact that is edited again
    replaces what was edited before, and the model's health is checked on the way. ``with`` or
    ``close()`` ends it; the edits stay in the model.

    One edit at a time: other threads' edits wait, and so do their forwards of the model while an
    edit is made. ``with session.reading():`` keeps edits out of a whole generation.

    Args:
        model, tok, hparams, second_moment, context_templates, variant, backend: as in
            ``rome_fast.edit``; no second moment given: that of eight times as much ordinary text,
            as far as it reaches.
        form: of its edits, unless a call says another; as in ``rome_fast.edit``. None: "neuron",
            or "weight" where a second moment is given or the MLP can have no neurons. A Session
            that is not of "weight" reads no second moment, and makes no edits of that form.
        journal: a file to which each edit is written before it is acknowledged; ``Session.resume``
            goes on from it, whatever ended the process.
        solve: of edits in the weight: "joint", all of them as one by their prompts' keys, whose
            order makes no difference and of which one that is taken out leaves no trace; or
            "sequential", each by its variant on the edited weight, where those before it are
            retained.
        lam: how softly they are solved as one, in units of k . C^-1 k; None: from the layer's
            statistics.
        retain: for "sequential", what each edited key weighs against all ordinary ones together;
            0: earlier edits are not protected from later ones.
        stop_loss: overrides ``hparams.v_stop_loss``: a longer search makes the target surer, but by
            a larger update, which in the weight costs other facts. None: 0.3 for the weight,
            which is searched with Adam for the same reason, the hparams' own for other forms.
        anchor: rescale each solved value v* to the mean norm of the first ``anchor`` ones; 0: off.
        guard: what is done with updates of the weight that are out of proportion.
        health: what is checked, how often, and what is done when the model is unwell.

    Attributes:
        form: of its edits, unless a call says another.

    Raises:
        SessionError: another Session edits this weight.
        JournalError: the journal exists already, or cannot be written.
        RomeFastError: as ``rome_fast.edit``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        hparams: RomeHparams | None = None,
        *,
        second_moment: SecondMoment | str | Path | Iterable[str] | None = None,
        context_templates: Sequence[str] | None = None,
        variant: str | None = None,
        backend: str = "auto",
        form: str | None = None,
        journal: str | Path | None = None,
        solve: str = "joint",
        lam: float | None = None,
        retain: float = 0.01,
        stop_loss: float | None = None,
        anchor: int = 0,
        guard: Guard | None = None,
        health: HealthCheck | None = None,
    ) -> None:
        options = {
            "backend": backend,
            "solve": solve,
            "lam": lam,
            "retain": retain,
            "anchor": anchor,
            "guard": Guard() if guard is None else guard,
            "health": HealthCheck() if health is None else health,
        }
        check_options(options)
        self._begin(
            start_new(
                model, tok, hparams, variant, stop_loss, context_templates, second_moment, journal,
                form, options,
            )
        )  # fmt: skip

    @classmethod
    def resume(
        cls,
        path: str | Path,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        *,
        second_moment: SecondMoment | str | Path | Iterable[str] | None = None,
    ) -> Session:
        """Resume from a journal, with the options it was begun with and every edit it holds.

        A record that was torn by the end of the process is dropped, with a SessionWarning; its
        edit was never acknowledged. What was undone before cannot be redone.

        Args:
            model: the unedited model, as it was loaded when the journal was begun.
            second_moment: the file or SecondMoment that the journal was begun with; needed only if
                it was begun with one. What was collected is kept beside the journal.

        Raises:
            JournalError: absent, damaged, open elsewhere, or begun with another second moment or
                tokenizer.
            EditLogError: the model is another one, or edited already; names the weight.
        """
        session = cls.__new__(cls)
        session._begin(resume(path, model, tok, second_moment))
        return session

    def _begin(self, parts: SessionParts) -> None:
        self._editor, self._ledger, self._lock = parts.editor, parts.ledger, parts.lock
        self._sequencer = Sequencer(self._editor, parts.settings, self._ledger, self._undo_of)
        self._monitor = HealthMonitor(
            parts.settings.health, self._editor, self._ledger, parts.baseline, parts.checks,
            parts.taken_out, self._set_taken_out, self._consolidate,
        )  # fmt: skip
        self._undone: list[int] = []
        self.form = parts.settings.form
        self._let_go = weakref.finalize(self, parts.resources.close)

    @property
    def log(self) -> EditLog:
        """A copy of the log of every edit so far; changing it does not affect the Session."""
        return self._ledger.log.copy()

    @property
    def hparams(self) -> RomeHparams:
        """The hyper-parameters that it edits with."""
        return self._editor.hparams

    @property
    def checks(self) -> list[Health]:
        """Every check of the model's health so far, in order."""
        return list(self._monitor.checks)

    def edit(self, request: Request, *, form: str | None = None) -> EditResult:
        """Change one fact. An earlier edit of the same subject and prompt is taken out first.

        Args:
            form: of this edit; None: the Session's.

        Raises:
            InvalidArgumentError: the Session makes no edits of this form.
            UnhealthyError: ``health.on_unhealthy`` has stopped the Session, or undone this edit.
            JournalError: it cannot be written down; the edit was undone.
            RomeFastError: as ``rome_fast.edit``; the model is bit-identical to before.
        """
        [made] = self._edit_next([EditRequest.parse(request)], self._form_of(form))
        if isinstance(made, RejectedEdit):
            raise made.error
        return made

    def edit_many(
        self,
        requests: Iterable[Request],
        *,
        order: str = "exact",
        window: int = 16,
        form: str | None = None,
        progress: bool = True,
    ) -> list[Outcome]:
        """Change many facts, one result per request, in order.

        Args:
            requests: all are read before the first is edited.
            order, window, progress: as in ``rome_fast.edit_many``.
            form: as in ``edit``.

        Returns:
            EditResults; a RejectedEdit stands for a request that was refused.

        Raises:
            InvalidArgumentError: ``order``, ``window`` or ``form`` is none of the possible ones.
            InvalidRequestError: a request is bad, or ``requests`` is no list; nothing was edited.
            RomeFastError: as ``edit``, or ``guard.action == "stop"`` and a request was refused. The
                edits before it stay, and are in ``log``.
        """
        return list(
            self.stream(
                parse_many(requests), order=order, window=window, form=form, progress=progress
            )
        )

    def stream(
        self,
        requests: Iterable[Request],
        *,
        order: str = "exact",
        window: int = 16,
        form: str | None = None,
        progress: bool = True,
    ) -> EditStream:
        """Change many facts while their results are iterated over.

        Args:
            requests: may be a generator; it is read as the edits are made.
            order, window, progress: as in ``rome_fast.edit_many``.
            form: as in ``edit``.

        Returns:
            An iterator over what ``edit_many`` returns. Nothing is edited before its first result
            is asked for. Edits whose results were given are kept, whatever happens to later ones.

        Raises:
            InvalidArgumentError: ``order``, ``window`` or ``form`` is none of the possible ones.
            InvalidRequestError: ``requests`` is no list, generator or the like.
            RomeFastError: while iterating, as ``edit``; a bad request ends it, and so does a
                refused one with ``guard.action == "stop"``.
        """
        size = check_order(order, window)
        check_many(requests)
        edit = partial(self._edit_next, form=self._form_of(form))
        stream = EditStream(edit, requests, size, progress)
        self._editor.tell = stream.tell
        return stream

    def undo(self, n: int = 1) -> list[int]:
        """Take out the last ``n`` edits, bit for bit; returns their numbers, latest first.

        What they had replaced holds again.

        Raises:
            RevertError: there are fewer, or none.
        """
        with self._working():
            kept = [edit.edit_id for edit in self._ledger.log.kept()]
            _check_steps(n, len(kept), "the edits to undo", "nothing to undo: no edit is left")
            undone = kept[: -n - 1 : -1]
            self._set_taken_out(self._ledger.log.taken_out | set(undone))
            return undone

    def redo(self, n: int = 1) -> list[int]:
        """Put the last ``n`` edits that were taken out back in their places; returns their numbers.

        Raises:
            RevertError: fewer were taken out since the last new edit.
        """
        with self._working():
            nothing = "nothing to redo: no edit was taken out since the last new one"
            what = "the edits taken out since the last new one"
            _check_steps(n, len(self._undone), what, nothing)
            back = self._undone[: -n - 1 : -1]
            self._ledger.take_out(self._ledger.log.taken_out - set(back))
            del self._undone[-n:]
            return back

    def revert(self, edit_id: int) -> None:
        """Take out one edit; the weight becomes what the other edits make of the unedited one.

        An edit that it had replaced holds again.

        Raises:
            RevertError: this edit does not hold.
        """
        with self._working():
            if edit_id not in {edit.edit_id for edit in self._ledger.log.holding()}:
                raise RevertError(
                    f"edit_id {edit_id!r} is not among the edits that hold: see session.log.show()"
                )
            self._set_taken_out(self._ledger.log.taken_out | {edit_id})

    def consolidate(
        self,
        *,
        steps: int = STEPS,
        seconds: float | None = None,
        protect: Sequence[str] = (),
        progress: bool = True,
    ) -> Consolidation:
        """Better all edits of the weight together, on the edited model (docs/sessions.md).

        Each was found alone, with much to spare. What they ask of the weight's output is searched
        anew, so that their targets are still said and the unedited model's answers come back: on
        their prompts with other subjects, on ordinary text, and on what is to be protected. Their
        keys stay, and so does everything that a log can do. Called again, it goes on.

        Args:
            steps: of the search; each takes some forwards and one backward of the model, and 16
                of the edits: many edits want more steps.
            seconds: end sooner, after the step in which these are over.
            protect: prompts whose next token shall stay.

        Returns:
            What it did. In a journal it is whole or not at all.

        Raises:
            SessionError: no edit of the weight is solved with others (``solve="joint"``).
            InvalidArgumentError: an argument is none of the possible ones.
            RomeFastError: the model, the log and the journal are as before.
        """
        check_consolidate(steps, seconds, protect)
        with self._working():
            if not self._ledger.solved_edits():
                raise SessionError(
                    "there is nothing to consolidate: no edit of the weight holds that is solved "
                    'with others (Session(form="weight", solve="joint"))'
                )
            return self._consolidate(steps, seconds, protect, progress)

    def health(self) -> Health:
        """Check the model's health now.

        Returns:
            A Health; a Session that had stopped may edit again if it is healthy.
        """
        with self._working():
            return self._monitor.look()

    def save_checks(self, path: str | Path) -> None:
        """Write all checks so far, as data (``.json``) or as a picture (``.svg``, ``.png``, ...).

        Raises:
            MissingExtraError: a picture needs matplotlib, which is not installed.
        """
        save_checks(self.checks, Path(path))

    def save_pretrained(self, folder: str | Path, *, multiple: int = 64) -> None:
        """Write the edited model as a plain checkpoint, and its tokenizer.

        Neurons become units of the MLP, which grows in all layers (docs/forms.md).

        Args:
            multiple: the number of units is rounded up to one of it.

        Raises:
            UnsupportedModelError: there are gates, or the family's MLP cannot grow; nothing was
                written.
            OSError: it cannot be written.
        """
        with self._working():
            widened(self._editor.model, multiple).save_pretrained(folder)
            self._editor.tok.save_pretrained(folder)

    def reading(self) -> AbstractContextManager[None]:
        """While open, no other thread edits: for a generation that belongs to one model.

        Raises:
            SessionError: the Session is closed.
        """
        self._check_open()
        return self._lock.reading()

    def close(self) -> None:
        """End the Session: release the weight, the hooks and the journal. The edits stay.

        An edit in progress in another thread is finished first.
        """
        with self._lock.editing():
            self._let_go()

    def __enter__(self) -> Session:
        self._check_open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._let_go.alive:
            raise SessionError("the Session is closed: open another one, or resume its journal")

    @contextmanager
    def _working(self) -> Iterator[None]:
        """While open, no other thread uses the model; Session and weight have been checked."""
        with self._lock.editing():
            self._check_open()
            with open_model(self._editor.model) as spec:
                self._editor.spec = spec
                self._ledger.check_weight()
                yield

    def _form_of(self, form: str | None) -> str:
        """The form of a call's edits. Raises InvalidArgumentError."""
        asked = self.form if form is None else check_form(form)
        if asked == "weight" != self.form:
            raise InvalidArgumentError(
                f"form='weight' needs the second moment, which a Session of {self.form!r} does "
                "not read: open it with form='weight', which takes edits of all forms"
            )
        return asked

    def _edit_next(self, waiting: list[EditRequest], form: str) -> list[Outcome]:
        """Edit the first requests; those that were edited or rejected are removed from the list."""
        with self._working():
            before = self._ledger.n_recorded
            try:
                return self._edit_window(waiting, form)
            finally:
                # Also after an error: what a rollback has undone is not edited again.
                del waiting[: self._ledger.n_recorded - before]

    def _edit_window(self, requests: Sequence[EditRequest], form: str) -> list[Outcome]:
        self._monitor.may_edit()
        first = self._ledger.log.next_id
        try:
            made = self._sequencer.edit(requests, form)
        finally:
            if self._ledger.log.next_id > first:
                self._undone.clear()
        try:
            self._monitor.after_edits()
        except Warning:
            # The user's filter has made an error of it, and what raises has edited nothing.
            new = {result.edit_id for result in made if result.edit_id is not None}
            self._set_taken_out(self._ledger.log.taken_out | new)
            raise
        return made

    def _consolidate(
        self,
        steps: int = STEPS,
        seconds: float | None = None,
        protect: Sequence[str] = (),
        progress: bool = False,
    ) -> Consolidation:
        edits = self._ledger.solved_edits()
        with self._ledger.attempt():
            with self._ledger.alone([]):
                encoded = self._editor.encoded([edit.request for edit in edits])
                search = Consolidator(self._editor, edits, encoded, protect)
                made = search.run(steps, seconds, progress)
            self._ledger.ask_anew(search.asked())
        return made

    def _set_taken_out(self, numbers: AbstractSet[int]) -> None:
        before = self._ledger.log.taken_out
        self._ledger.take_out(numbers)
        still = [number for number in self._undone if number in numbers]
        self._undone = still + sorted(numbers - before, reverse=True)

    def _undo_of(self, edit_id: int) -> SessionUndo:
        return SessionUndo(self, edit_id)


def _check_steps(n: object, most: int, what: str, nothing: str) -> None:
    """Raise RevertError unless ``n`` of so many edits can be undone or redone."""
    if type(n) is not int or n < 1:
        raise RevertError(f"n must be a whole number of 1 or more, got {n!r}")
    if not most:
        raise RevertError(nothing)
    if n > most:
        raise RevertError(f"n must be 1 to {most}, {what}; got {n}")


@dataclass(frozen=True)
class SessionUndo:
    """What ``EditResult.revert`` does for an edit of a Session."""

    session: Session
    edit_id: int

    def revert(self) -> None:
        """As ``Session.revert``."""
        self.session.revert(self.edit_id)
