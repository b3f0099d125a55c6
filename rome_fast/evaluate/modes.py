"""The two ways to judge edits: each alone on the unedited weights, or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rome_fast.errors import REFUSALS, RomeFastError
from rome_fast.evaluate.result import CaseResult, Checkpoint, Stage
from rome_fast.types import RankOneUpdate

if TYPE_CHECKING:
    from rome_fast.editor import Editor
    from rome_fast.evaluate.journal import Journal
    from rome_fast.evaluate.judge import Judge
    from rome_fast.types import Update

# At how many points of a sequence retention and drift are measured.
N_CHECKPOINTS = 10


def judge_alone(editor: Editor, judge: Judge, numbers: Sequence[int]) -> list[CaseResult]:
    """Judge each record edited alone; the weight's bits are as before.

    A window's values are searched together. Where that fails they are searched one by one, so
    that a bad request does not affect the others.
    """
    askable = [number for number in numbers if number not in judge.unaskable]
    cases = [
        judge.case(number, {}, error=judge.unaskable[number])
        for number in numbers
        if number in judge.unaskable
    ]
    try:
        return cases + (_judge_window(editor, judge, askable) if askable else [])
    except REFUSALS as error:
        if len(askable) == 1:
            return [*cases, _refused(judge, askable[0], error)]
    return cases + [case for number in askable for case in judge_alone(editor, judge, [number])]


def _judge_window(editor: Editor, judge: Judge, numbers: Sequence[int]) -> list[CaseResult]:
    proposals = editor.propose([judge.records[number].request for number in numbers])
    judge.timings.lap("edit")
    updates = [proposal.update for proposal in proposals]
    ranks = [update for update in updates if isinstance(update, RankOneUpdate)]
    # A trial leaves out the rounding of half-precision weights: there each update is written.
    if len(ranks) == len(updates) and editor.projection.weight.itemsize > 2:
        after = judge.stages(numbers, ranks)
    else:
        after = []
        for number, update in zip(numbers, updates, strict=True):
            with editor.edits.having(update):
                after += judge.stages([number])
    if judge.texts:
        for i, update in enumerate(updates):
            with editor.edits.having(update):
                after[i] = _with_drift(after[i], judge.drift())
    return [
        judge.case(
            number,
            {"after": stage},
            **_norms(proposal.update, proposal.weight_norm),
            losses=proposal.losses,
            seconds=sum(proposal.seconds.values()),
            warnings=(
                *proposal.warnings,
                *editor.unreached(proposal.update, judge.records[number].paraphrases),
            ),
        )
        for number, proposal, stage in zip(numbers, proposals, after, strict=True)
    ]


def _refused(judge: Judge, number: int, error: RomeFastError) -> CaseResult:
    after = _with_drift(judge.unedited(number), judge.drift())
    return judge.case(number, {"after": after}, error=_reason(error))


def _with_drift(stage: Stage, drift: dict[str, float]) -> Stage:
    return replace(stage, values={**stage.values, **drift})


def _reason(error: RomeFastError) -> str:
    return f"{type(error).__name__}: {error}"


def judge_in_sequence(
    editor: Editor,
    judge: Judge,
    numbers: Sequence[int],
    journal: Journal,
    advance: Callable[[], object],
) -> tuple[list[CaseResult], list[Checkpoint]]:
    """Judge each record edited on the weights that those before it left; all edits stay in.

    Args:
        journal: what it holds is not done again, only its updates are added.
        advance: called after each record.
    """
    due = {round(len(numbers) * i / N_CHECKPOINTS) for i in range(1, N_CHECKPOINTS + 1)}
    cases: list[CaseResult] = []
    made: list[int] = []
    checkpoints = []
    for count, number in enumerate(numbers, 1):
        if is_kept := number in journal.cases:
            case, update = journal.cases[number], journal.updates[number]
            if update is not None:
                editor.edits.add(update)
        else:
            case, update = _edit_next(editor, judge, number)
        cases.append(case)
        if case.error is None:
            made.append(number)
        checkpoint = journal.checkpoints.get(number)
        if count in due and made and not is_kept:
            checkpoint = Checkpoint(len(made), judge.retained(made), **judge.drift())
        if checkpoint is not None:
            checkpoints.append(checkpoint)
        if not is_kept:
            journal.add_next(case, update, checkpoint)
        advance()
    askable = [number for number in numbers if number not in judge.unaskable]
    after = dict(zip(askable, judge.stages(askable), strict=True))
    ended = [
        replace(case, stages={**case.stages, "after": after[case.index]})
        if case.index in after
        else case
        for case in cases
    ]
    return ended, checkpoints


def _edit_next(editor: Editor, judge: Judge, number: int) -> tuple[CaseResult, Update | None]:
    if number in judge.unaskable:
        return judge.case(number, {}, error=judge.unaskable[number]), None
    before = editor.edits.updates
    try:
        [result] = editor.edit([judge.records[number].request], strict=False)
        judge.timings.lap("edit")
        [stage] = judge.stages([number])
    except REFUSALS as error:
        editor.edits.set(before)
        [stage] = judge.stages([number])
        return judge.case(number, {"edit_time": stage}, error=_reason(error)), None
    case = judge.case(
        number,
        {"edit_time": stage},
        **_norms(result.update, result.weight_norm),
        losses=result.losses,
        seconds=sum(result.seconds.values()),
        warnings=(
            *result.warnings,
            *editor.unreached(result.update, judge.records[number].paraphrases),
        ),
    )
    return case, result.update


def _norms(update: Update, weight_norm: float) -> dict[str, float]:
    """Of an update of the weight; what stands beside it changes nothing of it."""
    if not isinstance(update, RankOneUpdate):
        return {}
    return {"update_norm": update.norm, "weight_norm": weight_norm}
