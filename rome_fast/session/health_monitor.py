"""When a Session checks the model's health, and what it does when the model is unwell."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING

from rome_fast.errors import RomeFastError, SessionWarning, UnhealthyError, warn
from rome_fast.session.baseline import Baseline
from rome_fast.session.health import Health, HealthCheck
from rome_fast.session.outlook import outlook

if TYPE_CHECKING:
    from rome_fast.editor import Editor
    from rome_fast.session.ledger import Ledger


class HealthMonitor:
    """Checks the model's health every ``check.every`` edits.

    Args:
        baseline: of the unedited model; None: made at the first check.
        checks: every check so far.
        taken_out: numbers of the edits that were taken out at the last healthy one.
        set_taken_out: makes exactly these edits, by number, the ones taken out.
        consolidate: betters the edits that are solved as one, together.

    Attributes:
        checks: every check so far.
    """

    def __init__(
        self,
        check: HealthCheck,
        editor: Editor,
        ledger: Ledger,
        baseline: Baseline | None,
        checks: list[Health],
        taken_out: frozenset[int],
        set_taken_out: Callable[[AbstractSet[int]], object],
        consolidate: Callable[[], object],
    ) -> None:
        self._check, self._editor, self._ledger, self.checks = check, editor, ledger, checks
        self._baseline, self._good, self._set_taken_out = baseline, taken_out, set_taken_out
        self._consolidate = consolidate
        self._stopped: UnhealthyError | None = None
        if checks:
            self._stop_if_need_be(checks[-1])

    def look(self) -> Health:
        """Check now. If the model is healthy, a stopped Session may edit again.

        What is foretold stops it only at the checks that it makes by itself.
        """
        editor, ledger = self._editor, self._ledger
        if self._baseline is None:
            with ledger.unedited():
                self._baseline = Baseline(
                    self._check, editor.model, editor.tok, editor.hparams.seed
                )
        health = self._baseline.look(ledger.log, ledger.history, ledger.spread(), ledger.unedited)
        health = self._foretold(health)
        ledger.note({"kind": "health", "health": health.to_json()})
        self.checks.append(health)
        if health.healthy:
            self._stopped, self._good = None, frozenset(ledger.log.taken_out)
        return health

    def may_edit(self) -> None:
        """Raise UnhealthyError if an earlier check has stopped the Session."""
        if self._stopped is not None:
            raise self._stopped

    def after_edits(self) -> None:
        """Check if one is due, and react. A check that fails only warns: the edits were made.

        Raises:
            UnhealthyError: the edits since the last healthy check were undone.
        """
        made = self._ledger.log.next_id - 1
        if not self._check.every or not self._is_due(made):
            return
        try:
            health = self._bettered(self.look())
        except Exception as error:
            text = f"no look at the model's health was possible after edit {made}: {error}"
            warn(text, SessionWarning)
            return
        if not _alarms(health):
            return
        warn(str(health), SessionWarning)
        self._stop_if_need_be(health)
        if self._check.on_unhealthy in ("rollback", "consolidate") and not health.healthy:
            self._roll_back(health)

    def _bettered(self, health: Health) -> Health:
        """After the edits were consolidated, where that is asked for and needed."""
        wanted = self._check.on_unhealthy == "consolidate" and _alarms(health)
        if not wanted or not self._ledger.solved_edits():
            return health
        self._consolidate()
        return self.look()

    def _foretold(self, health: Health) -> Health:
        """With what is foretold."""
        if not self._check.horizon or not health.healthy:
            return health
        told = outlook(health, self._ledger.shares(), self._check.horizon)
        if told is None:
            return health
        return replace(health, outlook=replace(told, problems=self._check.problems(told)))

    def _is_due(self, made: int) -> bool:
        """Whether to check now, after so many edits."""
        last = self.checks[-1].last_edit if self.checks else 0
        if made - last >= self._check.gap(last) or self._spreads():
            return True
        if self.checks and not self.checks[-1].healthy:
            return False
        edits = self._ledger.log.edits[last:]
        missed = sum(edit.numbers.get("rank_after", 1) > 1 for edit in edits)
        return missed > 1 and missed >= len(edits) / 4

    def _spreads(self) -> bool:
        """Whether edits have moved the output beyond the limit since the last check."""
        spread, limit = self._ledger.spread(), self._check.max_spread
        told = self.checks[-1].spread if self.checks else None
        return spread is not None and spread > limit and (told is None or told <= limit)

    def _stop_if_need_be(self, health: Health) -> None:
        """Edit no more, where the check says so and nothing is to be undone."""
        if self._check.on_unhealthy == "stop" and not health.healthy:
            self._stop(health)
        elif self._check.on_unhealthy != "warn" and health.healthy and _alarms(health):
            self._stopped = UnhealthyError(
                f"the Session has stopped before the model is unwell: {health}. All edits hold. "
                f"{_remedies(health)} To go on as it is, call health()"
            )

    def _stop(self, health: Health, why: str = "") -> None:
        self._stopped = UnhealthyError(
            f"the Session has stopped: {health}{why}. Take edits out with undo() or revert(), then "
            f"call health(): once it is healthy, the Session edits again. {_remedies(health)}"
        )

    def _roll_back(self, health: Health) -> None:
        """Undo the edits made since the last healthy check; put back those taken out since."""
        good = max((check.last_edit for check in self.checks if check.healthy), default=0)
        later = range(good + 1, health.last_edit + 1)
        try:
            self._set_taken_out(self._good | set(later))
        except RomeFastError as error:
            # The edits are made and in the model: their results must be returned.
            self._stop(health, f"; the edits since the last healthy look stay: {error}")
            return
        raise UnhealthyError(
            f"edits {good + 1} to {health.last_edit} were undone, back to the last healthy look: "
            f"{health}. {_remedies(health)}"
        )


def _alarms(health: Health) -> bool:
    """Whether the model is unwell, or will be soon."""
    return not health.healthy or bool(health.outlook and health.outlook.problems)


def _remedies(health: Health) -> str:
    """What a user can do."""
    ways = ["another layer", "fewer edits"]
    if any(norm > 0 for norm in health.update_norms.values()):
        ways = ['edits beside the weight (form="neuron" or "gate")', *ways]
    if health.spread is not None:
        ways = ['consolidate() in time (health.on_unhealthy="consolidate")', *ways]
    return f"What helps: {', '.join(ways)}."
