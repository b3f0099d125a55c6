"""Edits a Session window by window: conflicts, anchor, guard, and recording in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rome_fast.editlog import LoggedEdit, Rejection
from rome_fast.errors import REFUSALS, EditWarning, RomeFastError, warn
from rome_fast.session.change import Change
from rome_fast.session.joint import JointWriter
from rome_fast.session.sequential import SequentialWriter
from rome_fast.timings import Timings
from rome_fast.types import EditRequest, EditResult, Undo

if TYPE_CHECKING:
    from rome_fast.editor import Editor
    from rome_fast.session.ledger import Ledger
    from rome_fast.session.settings import Settings
    from rome_fast.value.window import KeyValue


@dataclass(frozen=True)
class RejectedEdit:
    """Stands in for an EditResult: a request that was refused, and the error that says why.

    The model is bit-identical to before the request.

    Attributes:
        edit_id: None: no edit was made.
    """

    request: EditRequest
    error: RomeFastError
    success: bool = False
    edit_id: None = None

    def __str__(self) -> str:
        return f"REJECTED: {self.request}: {self.error}"


Outcome = EditResult | RejectedEdit


class Sequencer:
    """Edits windows of requests, all or nothing.

    Args:
        undo: makes the undo handle of an edit from its number.
    """

    def __init__(
        self, editor: Editor, settings: Settings, ledger: Ledger, undo: Callable[[int], Undo]
    ) -> None:
        self._editor, self._settings, self._ledger, self._undo = editor, settings, ledger, undo
        self._joint = JointWriter(editor, settings, ledger, self._anchored)
        self._sequential = SequentialWriter(editor, settings, ledger)
        self._apart: list[EditRequest] = []

    def edit(self, requests: Sequence[EditRequest], form: str) -> list[Outcome]:
        """Edit the first requests, as many as can be solved together.

        If a window is refused, its requests are edited one by one, each in its own call: a bad one
        then does not affect the others, and an error cannot hide their results.

        Raises:
            RomeFastError: with ``guard.action == "stop"``, a request was refused.
        """
        self._editor.form = form
        self._editor.edits.solved = [e.request for e in self._ledger.solved_edits()]
        window = requests[: self._n_together(requests)]
        if len(window) > 1:
            try:
                return list(self._attempt(window))
            except REFUSALS:
                self._apart = list(window)
        # Outside of the handler, whose traceback keeps the tensors of the attempt alive.
        return [self._alone(requests[0], self._ledger.same_fact(requests[0]))]

    def _n_together(self, requests: Sequence[EditRequest]) -> int:
        """How many to edit at once; one that replaces an edit, or one of the window, goes alone."""
        if len(requests) == 1 or any(requests[0] is request for request in self._apart):
            return 1
        for n, request in enumerate(requests):
            again = any(request.same_fact(other) for other in requests[:n])
            if again or self._ledger.same_fact(request):
                return max(n, 1)
        return self._editor.n_apart(requests)

    def _alone(self, request: EditRequest, replaced: tuple[int, ...]) -> Outcome:
        try:
            return self._attempt([request], replaced)[0]
        except REFUSALS as error:
            self._ledger.reject(Rejection.of(request, error))
            if self._settings.guard.action == "stop":
                raise
            return RejectedEdit(request, _without_frames(error))

    def _attempt(
        self, requests: Sequence[EditRequest], replaced: tuple[int, ...] = ()
    ) -> list[EditResult]:
        ledger, editor = self._ledger, self._editor
        editor.timings = Timings()  # the time before belongs to no edit
        first = ledger.log.next_id
        with ledger.attempt():
            if replaced:
                ledger.set_aside(replaced)
            weight_norm = editor.weight_norm()
            if editor.form == "weight" and self._settings.solve == "joint":
                found, changes = self._joint.write(requests, replaced)
            else:
                found = [self._anchored(f) for f in editor.find(requests)]
                if editor.form == "weight":
                    changes = self._sequential.write(found, replaced)
                else:
                    changes = self._beside_it(requests, found)
            editor.timings.lap("update")
            numbers = range(first, first + len(changes))
            undos = [self._undo(number) for number in numbers]
            updates = [change.update for change in changes]
            results = [
                replace(
                    result,
                    edit_id=number,
                    replaced=replaced,
                    warnings=(*result.warnings, *_replacing(replaced), *change.findings),
                )
                for number, result, change in zip(
                    numbers,
                    editor.report(requests, found, updates, undos, weight_norm),
                    changes,
                    strict=True,
                )
            ]
            edits = [
                self._logged(result, f, change)
                for result, f, change in zip(results, found, changes, strict=False)
            ]
            # Before the edits count: where a filter makes an error of a warning, none is made.
            for text in (text for result in results for text in result.warnings):
                warn(text, EditWarning)
            ledger.add(edits, [change.keys for change in changes])
        return results

    def _beside_it(
        self, requests: Sequence[EditRequest], found: Sequence[KeyValue]
    ) -> list[Change]:
        """Put offsets beside the weight."""
        writer = self._editor.writer()
        self._ledger.stand(writer.module)
        made = [self._editor.made(request, f) for request, f in zip(requests, found, strict=True)]
        return [
            Change(m.offset, tuple(remarks))
            for m, remarks in zip(made, writer.add(made), strict=True)
        ]

    def _anchored(self, found: KeyValue) -> KeyValue:
        """Rescale the solved value v* to the mean norm of the first ones, once there are enough."""
        if not self._settings.anchor:
            return found
        holding = self._ledger.holding()
        pilots = [edit.numbers["value_norm"] for edit in holding[: self._settings.anchor]]
        if len(pilots) < self._settings.anchor:
            return found
        init, delta = found.keys.value_init, found.value.value_delta
        solved = init + delta
        norm = sum(pilots) / len(pilots)
        moved = solved * (norm / solved.norm()) - init
        return replace(found, value=replace(found.value, value_delta=moved))

    def _logged(self, result: EditResult, found: KeyValue, change: Change) -> LoggedEdit:
        assert result.edit_id is not None
        solved = found.keys.value_init + found.value.value_delta
        numbers: dict[str, Any] = {
            "prob_before": result.prob_before,
            "prob_after": result.prob_after,
            "rank_after": result.rank_after,
            "argmax_before": result.argmax_before,
            "argmax_after": result.argmax_after,
            "then": result.then,
            **(
                {"answer": result.answer, "answer_is": result.answer_is} if result.answer_is else {}
            ),
            "loss": result.losses[-1],
            "steps": len(result.losses),
            "update_norm": change.update.norm,
            **change.numbers,
            "weight_norm": result.weight_norm,
            "value_norm": float(solved.norm()),
            "window": result.window,
            "warnings": list(result.warnings),
        }
        return LoggedEdit(
            edit_id=result.edit_id,
            request=result.request,
            weight_name=result.weight_name,
            update=change.update if change.logged is None else change.logged,
            replaced=result.replaced,
            released=change.released,
            carries=change.carries,
            numbers=numbers,
        )


def _without_frames(error: RomeFastError) -> RomeFastError:
    """The error without the tracebacks of it and its causes, which keep tensors alive."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _replacing(replaced: Sequence[int]) -> list[str]:
    # Those before the last one were taken out for the one after them.
    return [f"this fact was edited before: edit {n} was taken out" for n in replaced[-1:]]
