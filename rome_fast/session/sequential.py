"""Edits of a Session's weight one after the other: each solved where those before it stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rome_fast.session.change import Change
from rome_fast.session.guard import WINDOW, Written
from rome_fast.types import RankOneUpdate
from rome_fast.update.joint import count_independent, solve_updates
from rome_fast.update.solve import Constraint, Metric, solve_and_apply_

if TYPE_CHECKING:
    from rome_fast.editor import Editor
    from rome_fast.session.ledger import Ledger
    from rome_fast.session.settings import Settings
    from rome_fast.value.window import KeyValue


class SequentialWriter:
    """Writes what was found on the edited weight."""

    def __init__(self, editor: Editor, settings: Settings, ledger: Ledger) -> None:
        self._editor, self._settings, self._ledger = editor, settings, ledger

    def write(self, found: Sequence[KeyValue], replaced: Sequence[int]) -> list[Change]:
        """Solve, and write into the weight."""
        constraints = [self._editor.constraint(f) for f in found]
        constraints = constraints[: count_independent(constraints, self._metric)]
        near = self._release(constraints, replaced)
        return [
            Change(w.update, tuple(w.findings()), tuple(numbers), c.denominator_keys, w.numbers())
            for w, c, numbers in zip(self._write(constraints), constraints, near, strict=True)
        ]

    @property
    def _metric(self) -> Metric | None:
        return self._ledger.retained or self._editor.second_moment

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


def _denominator(update: RankOneUpdate, constraint: Constraint) -> float:
    u = update.u.double()
    return float(constraint.denominator_keys[0].to(u) @ u)
