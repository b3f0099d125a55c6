"""The order of an evaluation: what is asked, edited, judged and kept, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from rome_fast.errors import EditWarning, InvalidArgumentError, JudgeError, warn
from rome_fast.evaluate.evaluation import Evaluation
from rome_fast.evaluate.metrics import summarise
from rome_fast.evaluate.modes import judge_alone, judge_in_sequence, with_end
from rome_fast.evaluate.readings import judged
from rome_fast.evaluate.result import CaseResult, Checkpoint
from rome_fast.timings import progress_bar

if TYPE_CHECKING:
    from rome_fast.editor import Editor
    from rome_fast.evaluate.capability.measure import Harness
    from rome_fast.evaluate.capability.result import Capability
    from rome_fast.evaluate.journal import Journal
    from rome_fast.evaluate.judge import Judge
    from rome_fast.evaluate.protocols import Verdict
    from rome_fast.moment.collect.ranks import Ranks


class Run:
    """One evaluation, from the questions to the result."""

    def __init__(
        self,
        editor: Editor,
        judge: Judge,
        verdict: Verdict,
        ranks: Ranks,
        *,
        progress: bool,
    ) -> None:
        self._editor, self._judge, self._verdict = editor, judge, verdict
        self._ranks, self._progress = ranks, progress
        self._drift: dict[str, dict[str, float]] = {}
        self._capability: dict[str, Capability] = {}
        self._n_edits = 0

    def single(self, setting: dict[str, Any], journal: Journal, window: int) -> Evaluation:
        """Each record alone."""
        mine = range(len(self._judge.records))[self._ranks.rank :: self._ranks.size]
        todo = [number for number in mine if number not in journal.cases]
        cases = [journal.cases[number] for number in mine if number in journal.cases]
        self._begin(todo, journal)
        with self._bar("edited", len(mine), len(cases)) as bar:
            for start in range(0, len(todo), window):
                made = judge_alone(self._editor, self._judge, todo[start : start + window])
                journal.add(made)
                cases += made
                self._advance(bar, made)
        cases = self._judged(setting, cases, (), journal)
        result = self._result(setting, cases, ())
        if self._drift and "after" in result.metrics:
            after = {name: result.metrics["after"][name].mean for name in self._drift["before"]}
            self._drift["after"] = after
        return result

    def sequential(
        self, setting: dict[str, Any], journal: Journal, harness: Harness | None
    ) -> Evaluation:
        """One record after the other."""
        numbers = range(len(self._judge.records))
        self._begin(numbers, journal)
        self._measure("before", harness)
        with self._bar("edited", len(numbers)) as bar:
            cases, retention = judge_in_sequence(
                self._editor,
                self._judge,
                numbers,
                journal,
                lambda case: self._advance(bar, [case]),
            )
        with self._bar("asked after", len(numbers)) as bar:
            cases = with_end(self._judge, cases, journal, bar.update)
        if self._drift:
            self._drift["after"] = self._judge.drift()
        self._measure("after", harness)
        self._editor.edits.rewind()
        cases = self._judged(setting, cases, retention, journal)
        return self._result(setting, cases, retention)

    def _begin(self, numbers: Sequence[int], journal: Journal) -> None:
        with self._bar("asked before", len(numbers)) as bar:
            self._judge.begin(numbers, journal, bar.update)
        if self._judge.texts:
            self._drift["before"] = self._judge.drift()

    def _measure(self, stage: str, harness: Harness | None) -> None:
        if harness is not None:
            self._capability[stage] = harness.measure(self._judge.model, self._judge.tok)
            self._judge.timings.lap("capability")

    def _bar(self, what: str, total: int, done: int = 0) -> tqdm:
        return progress_bar(
            show=self._progress, total=total, initial=done, desc=what, unit="record"
        )

    def _advance(self, bar: tqdm, cases: Sequence[CaseResult]) -> None:
        self._n_edits += sum(len(case.requests) for case in cases if case.error is None)
        bar.set_postfix_str(
            f"{self._n_edits} edits, {self._judge.n_answers} answers", refresh=False
        )
        bar.update(len(cases))

    def _judged(
        self,
        setting: dict[str, Any],
        cases: list[CaseResult],
        retention: Sequence[Checkpoint],
        journal: Journal,
    ) -> list[CaseResult]:
        """The cases of all processes, with the verdicts of the judge that was asked for."""
        found, cause = cases, None
        if self._verdict != "exact":  # else as they have been read
            try:
                found = judged(cases, self._verdict)
            except InvalidArgumentError as error:
                cause = error
        # Where one judge has failed, every process says so: none waits for another.
        failed = self._ranks.gather([] if cause is None else [str(cause)])
        if not failed:
            return self._ranks.gather(found)
        asked = self._result({**setting, "judge": "exact"}, self._ranks.gather(cases), retention)
        where = "save_readings of this error's evaluation writes them"
        if journal.path is not None:
            path = journal.path.with_name(f"readings of {journal.path.name}")
            asked.save_readings(path)
            where = f"they are in {path}"
        raise JudgeError(
            f"{failed[0]}. No answer is lost: {where}, and Evaluation.from_readings judges them "
            "without the model",
            asked,
        ) from cause

    def _result(
        self,
        setting: dict[str, Any],
        cases: Sequence[CaseResult],
        retention: Sequence[Checkpoint],
    ) -> Evaluation:
        cases = sorted(cases, key=lambda case: case.index)
        notes = self._judge.notes(cases)
        for note in notes:
            warn(note, EditWarning)
        return Evaluation(
            setting={**setting, "notes": [*setting["notes"], *notes]},
            metrics=summarise(cases, setting["n_skipped"]),
            cases=tuple(cases),
            drift=self._drift,
            retention=tuple(retention),
            seconds=dict(self._judge.timings.seconds),
            capability=self._capability,
        )
