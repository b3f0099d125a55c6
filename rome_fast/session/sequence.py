"""Edits a Session window by window: conflicts, anchor, guard, and recording in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rome_fast.editlog import LoggedEdit, Rejection
from rome_fast.errors import REFUSALS, EditWarning, RomeFastError, warn
from rome_fast.session.guard import WINDOW, Written
from rome_fast.session.joint import about_subject, constraint_of, shrunk
from rome_fast.timings import Timings
from rome_fast.types import (
    EditRequest,
    EditResult,
    JointConstraint,
    RankOneUpdate,
    Undo,
    Update,
)
from rome_fast.update.joint import count_independent, solve_updates
from rome_fast.update.solve import Constraint, Metric, solve_and_apply_

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.editor import Editor
    from rome_fast.session.ledger import Ledger
    from rome_fast.session.settings import Settings
    from rome_fast.value.window import KeyValue


# Of what an earlier edit asks for: a later one that takes more than this share pushes it out.
PUSHES_OUT = 0.3


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


@dataclass(frozen=True, eq=False)
class Change:
    """What one edit has changed in the model.

    Attributes:
        update: what is in the model now and was not before.
        findings: remarks for the user.
        logged: what the log holds of it, where that is not the update.
        carries: numbers of edits of the subject, which this one speaks for.
        released: numbers of the edits that are not retained while this one holds.
        keys: [m, d_key], what later edits shall leave alone; None where nothing can move it.
        numbers: for the log.
    """

    update: Update
    findings: tuple[str, ...]
    released: tuple[int, ...] = ()
    keys: Tensor | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    logged: JointConstraint | None = None
    carries: tuple[int, ...] = ()


class Sequencer:
    """Edits windows of requests, all or nothing.

    Args:
        undo: makes the undo handle of an edit from its number.
    """

    def __init__(
        self, editor: Editor, settings: Settings, ledger: Ledger, undo: Callable[[int], Undo]
    ) -> None:
        self._editor, self._settings, self._ledger, self._undo = editor, settings, ledger, undo
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
                found, changes = self._jointly(requests, replaced)
            else:
                found = [self._anchored(f) for f in editor.find(requests)]
                if editor.form == "weight":
                    changes = self._in_weight(found, replaced)
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

    def _jointly(
        self, requests: Sequence[EditRequest], replaced: Sequence[int]
    ) -> tuple[list[KeyValue], list[Change]]:
        """Search on the unedited weight, where only edits of the subject are, and solve anew."""
        ledger, editor, held = self._ledger, self._editor, self._ledger.without(replaced)
        about = about_subject(held, requests[0])
        with ledger.alone(about) as fold:
            found = [self._anchored(f) for f in editor.find(requests)]
            moved = fold.output(found[0].keys.prompt_key)
        changes: list[Change] = []
        lam = self._settings.lam
        assert lam is not None  # of a Session of the weight
        for request, f in zip(requests, found, strict=True):
            constraint = constraint_of(editor, f, lam, moved)
            carries = tuple(edit.edit_id for edit in about)
            edit = self._provisional(request, constraint, carries, len(changes))
            held, change = self._solved_with(held, edit)
            changes.append(change)
        ledger.put(held)
        return found, changes

    def _provisional(
        self,
        request: EditRequest,
        constraint: JointConstraint,
        carries: tuple[int, ...],
        place: int,
    ) -> LoggedEdit:
        """An edit as the solver needs it; what it says is read later."""
        number, name = self._ledger.log.next_id + place, self._ledger.history.projection.name
        return LoggedEdit(number, request, f"{name}.weight", constraint, carries=carries)

    def _solved_with(
        self, held: list[LoggedEdit], edit: LoggedEdit
    ) -> tuple[list[LoggedEdit], Change]:
        """One more edit among those that hold; out of all proportion it is held back."""
        ledger, guard, constraint = self._ledger, self._settings.guard, edit.update
        assert isinstance(constraint, JointConstraint)
        norms = [e.numbers["update_norm"] for e in ledger.holding() if e.form == "weight"]
        limit = guard.limit(norms[-WINDOW:])
        update = ledger.solved([*held, edit])[-1]
        denominator = float(update.u.double() @ constraint.key.to(update.u).double())
        written = guard.decide(update, update.norm, limit, denominator)
        if written.asked > limit:
            there = ledger.output(held, constraint.key)
            edit = replace(edit, update=shrunk(constraint, there, limit / written.asked))
        logged = edit.update
        assert isinstance(logged, JointConstraint)
        update = ledger.solved([*held, edit])[-1]
        change = Change(
            update,
            (*written.findings(), *_pushed_out(held, ledger.taken())),
            numbers=written.numbers(),
            logged=logged,
            carries=edit.carries,
        )
        return [*held, edit], change

    def _in_weight(self, found: Sequence[KeyValue], replaced: Sequence[int]) -> list[Change]:
        """Solve, and write into the weight."""
        constraints = [self._editor.constraint(f) for f in found]
        constraints = constraints[: count_independent(constraints, self._metric)]
        near = self._release(constraints, replaced)
        return [
            Change(w.update, tuple(w.findings()), tuple(numbers), c.denominator_keys, w.numbers())
            for w, c, numbers in zip(self._write(constraints), constraints, near, strict=True)
        ]

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

    @property
    def _metric(self) -> Metric | None:
        return self._ledger.retained or self._editor.second_moment

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

    def _release(
        self, constraints: Sequence[Constraint], replaced: Sequence[int]
    ) -> list[list[int]]:
        """Stop retaining edits of nearly the same keys; returns their numbers by constraint."""
        retained = self._ledger.retained
        if retained is None:
            return [[] for _ in constraints]
        near = [sorted(retained.near(c.denominator_keys[0])) for c in constraints]
        if any(near):
            self._ledger.set_aside(replaced, {number for numbers in near for number in numbers})
        return near

    def _write(self, constraints: Sequence[Constraint]) -> list[Written]:
        """Solve, let the guard decide, and put the updates into the weight."""
        history, guard = self._ledger.history, self._settings.guard
        norms = [e.numbers["update_norm"] for e in self._ledger.holding() if e.form == "weight"]
        limit = guard.limit(norms[-WINDOW:])
        if len(constraints) > 1:
            updates = solve_updates(history.projection, constraints, self._metric)
            decided = [
                guard.decide(update, update.norm, limit, _denominator(update, constraint))
                for update, constraint in zip(updates, constraints, strict=True)
            ]
            for written in decided:
                history.add(written.update)
            return decided
        solution = solve_and_apply_(history, constraints[0], self._metric, limit)
        if solution.applied:
            history.record(solution.update)
            return [Written(solution.update, limit, solution.norm, solution.denominator)]
        if not solution.is_sound:
            raise solution.refusal(history.projection.name)
        written = guard.decide(solution.update, solution.norm, limit, solution.denominator)
        history.add(written.update)
        return [written]

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


def _pushed_out(held: Sequence[LoggedEdit], taken: Sequence[float]) -> list[str]:
    """Said of an edit that takes much from earlier ones of what they ask for."""
    solved = [edit for edit in held if isinstance(edit.update, JointConstraint)]
    numbers = [
        str(edit.edit_id) for edit, share in zip(solved, taken, strict=True) if share > PUSHES_OUT
    ]
    if not numbers:
        return []
    said = f"takes much of what edits {', '.join(numbers)} ask for: they may no longer hold"
    return [f"{said} (an edit in neurons or a gate does not)"]


def _denominator(update: RankOneUpdate, constraint: Constraint) -> float:
    u = update.u.double()
    return float(constraint.denominator_keys[0].to(u) @ u)


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
