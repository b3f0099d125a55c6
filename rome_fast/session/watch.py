"""When a Session looks at the model's health, and what it does when the model is unwell."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rome_fast.errors import SessionWarning, UnhealthyError
from rome_fast.session.health import Baseline, Health, HealthCheck

if TYPE_CHECKING:
    from rome_fast.editor import Editor
    from rome_fast.session.book import Book


class Watch:
    """Looks at the model every ``check.every`` edits.

    Args:
        take_out: undoes edits, by number.

    Attributes:
        checks: every look so far.
    """

    def __init__(
        self,
        check: HealthCheck,
        editor: Editor,
        book: Book,
        checks: list[Health],
        take_out: Callable[[Sequence[int]], object],
    ) -> None:
        self._check, self._editor, self._book, self.checks = check, editor, book, checks
        self._take_out = take_out
        self._baseline: Baseline | None = None
        self._stopped: UnhealthyError | None = None

    def look(self) -> Health:
        """Look now. A healthy model lets a stopped Session go on."""
        editor, book = self._editor, self._book
        if self._baseline is None:
            with book.unedited():
                self._baseline = Baseline(
                    self._check, editor.model, editor.tok, editor.hparams.seed
                )
        health = self._baseline.look(book.log, book.history)
        book.note({"kind": "health", "health": health.to_json()})
        self.checks.append(health)
        if health.healthy:
            self._stopped = None
        return health

    def may_edit(self) -> None:
        """Raise UnhealthyError if an earlier look has stopped the Session."""
        if self._stopped is not None:
            raise self._stopped

    def after_edits(self) -> None:
        """Look, if it is time, and react.

        Raises:
            UnhealthyError: the edits since the last healthy look were undone.
        """
        made = self._book.log.next_id - 1
        since = made - (self.checks[-1].last_edit if self.checks else 0)
        if not self._check.every or since < self._check.every:
            return
        healthy_until = max((check.last_edit for check in self.checks if check.healthy), default=0)
        health = self.look()
        if health.healthy:
            return
        warnings.warn(str(health), SessionWarning, stacklevel=6)
        if self._check.on_unhealthy == "stop":
            self._stopped = UnhealthyError(
                f"the Session has stopped: {health}. undo() edits, or look again with health()"
            )
        elif self._check.on_unhealthy == "rollback":
            kept = [edit.edit_id for edit in self._book.log.kept()]
            undone = [number for number in reversed(kept) if number > healthy_until]
            self._take_out(undone)
            raise UnhealthyError(
                f"edits {healthy_until + 1} to {made} were undone, back to the last healthy look: "
                f"{health}"
            )
