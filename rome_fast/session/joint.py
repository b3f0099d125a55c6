"""Edits of a Session's weight that are solved as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rome_fast.editlog import LoggedEdit
from rome_fast.editlog.solved import about_subject
from rome_fast.session.change import Change
from rome_fast.session.guard import WINDOW
from rome_fast.types import EditRequest, JointConstraint
from rome_fast.update.softness import constraint_of

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.editor import Editor
    from rome_fast.session.ledger import Ledger
    from rome_fast.session.settings import Settings
    from rome_fast.value.window import KeyValue

# Of what an earlier edit asks for: a later one that takes more than this share pushes it out.
PUSHES_OUT = 0.3


class JointWriter:
    """Searches on the unedited weight, and solves anew with each edit.

    Args:
        anchored: rescales a value that was found.
    """

    def __init__(
        self,
        editor: Editor,
        settings: Settings,
        ledger: Ledger,
        anchored: Callable[[KeyValue], KeyValue],
    ) -> None:
        self._editor, self._settings, self._ledger = editor, settings, ledger
        self._anchored = anchored

    def write(
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
            delta = f.value.value_delta
            constraint = constraint_of(
                editor.projection,
                editor.second_moment,
                f.keys.prompt_key,
                delta + moved.to(delta),
                lam,
            )
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


def shrunk(constraint: JointConstraint, there: Tensor, share: float) -> JointConstraint:
    """Asking for a share of what is still missing where the other edits leave ``there``."""
    there = there.to(constraint.residual)
    return replace(constraint, residual=there + share * (constraint.residual - there))


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
