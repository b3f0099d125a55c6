"""The two ways to judge edits: each alone on the unedited weights, or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.errors import REFUSALS, RomeFastError
from rome_fast.evaluate.result import CaseResult, Checkpoint, Stage
from rome_fast.types import RankOneUpdate

if TYPE_CHECKING:
    from rome_fast.editor import Editor
    from rome_fast.evaluate.journal import Journal
    from rome_fast.evaluate.judge import Judge
    from rome_fast.evaluate.records import EditRecord
    from rome_fast.types import EditResult, Update

# At how many points of a sequence retention and drift are measured.
N_CHECKPOINTS = 10


def judge_alone(editor: Editor, judge: Judge, numbers: Sequence[int]) -> list[CaseResult]:
    """Judge each record edited alone; the weight's bits are as before.

    A window's values are searched together. Where that fails they are searched one by one, so
    that a bad request does not affect the others. A record of several edits is no part of a window.
    """
    askable, cases = [], []
    for number in numbers:
        if number in judge.unaskable:
            cases.append(judge.case(number, {}, error=judge.unaskable[number]))
        elif judge.records[number].also:
            cases.append(_judge_together(editor, judge, number))
        else:
            askable.append(number)
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
            **_norms([proposal.update], proposal.weight_norm),
            losses=proposal.losses,
            seconds=sum(proposal.seconds.values()),
            warnings=(
                *proposal.warnings,
                *editor.unreached(proposal.update, judge.records[number].paraphrases),
            ),
        )
        for number, proposal, stage in zip(numbers, proposals, after, strict=True)
    ]


def _judge_together(editor: Editor, judge: Judge, number: int) -> CaseResult:
    """One record's edits, all in the model at once, solved together where their keys allow it."""
    record, before = judge.records[number], editor.edits.updates
    results: list[EditResult] = []
    try:
        while len(results) < len(record.requests):
            results += editor.edit(record.requests[len(results) :], strict=False)
        judge.timings.lap("edit")
        [stage] = judge.stages([number])
    except REFUSALS as error:
        editor.edits.set(before)
        return _refused(judge, number, error)
    stage = _with_drift(stage, judge.drift())
    case = judge.case(number, {"after": stage}, **_made(editor, record, results))
    editor.edits.set(before)
    return case


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
    advance: Callable[[CaseResult], object],
) -> tuple[list[CaseResult], list[Checkpoint]]:
    """Judge each record edited on the weights that those before it left; all edits stay in.

    Args:
        journal: what it holds is not done again, only its updates are added.
        advance: called with each record's case.
    """
    due = {round(len(numbers) * i / N_CHECKPOINTS) for i in range(1, N_CHECKPOINTS + 1)}
    cases: list[CaseResult] = []
    made: list[int] = []
    checkpoints = []
    for count, number in enumerate(numbers, 1):
        if is_kept := number in journal.cases:
            case, updates = journal.cases[number], journal.updates[number]
            for update in updates:
                editor.edits.add(update)
        else:
            case, updates = _edit_next(editor, judge, number)
        cases.append(case)
        if case.error is None:
            made.append(number)
        checkpoint = journal.checkpoints.get(number)
        if count in due and made and not is_kept:
            n_edits = sum(len(judge.records[n].requests) for n in made)
            checkpoint = Checkpoint(n_edits, judge.retained(made), **judge.drift())
        if checkpoint is not None:
            checkpoints.append(checkpoint)
        if not is_kept:
            journal.add_next(case, updates, checkpoint)
        advance(case)
    return cases, checkpoints


def with_end(
    judge: Judge, cases: Sequence[CaseResult], journal: Journal, advance: Callable[[int], object]
) -> list[CaseResult]:
    """The cases of a sequence with what the model says at its end."""
    askable = [case.index for case in cases if case.index not in judge.unaskable]
    after = judge.at_the_end(askable, journal, advance)
    return [
        replace(case, stages={**case.stages, "after": after[case.index]})
        if case.index in after
        else case
        for case in cases
    ]


def _edit_next(editor: Editor, judge: Judge, number: int) -> tuple[CaseResult, list[Update]]:
    if number in judge.unaskable:
        return judge.case(number, {}, error=judge.unaskable[number]), []
    record, before = judge.records[number], editor.edits.updates
    results: list[EditResult] = []
    try:
        for request in record.requests:
            results += editor.edit([request], strict=False)
        judge.timings.lap("edit")
        [stage] = judge.stages([number])
    except REFUSALS as error:
        editor.edits.set(before)
        [stage] = judge.stages([number])
        return judge.case(number, {"edit_time": stage}, error=_reason(error)), []
    case = judge.case(number, {"edit_time": stage}, **_made(editor, record, results))
    return case, [result.update for result in results]


def _made(editor: Editor, record: EditRecord, results: Sequence[EditResult]) -> dict[str, Any]:
    """What a case says of its edits."""
    unreached = [
        remark
        for fact, result in zip(record.facts, results, strict=True)
        for remark in editor.unreached(result.update, fact.paraphrases)
    ]
    remarks = [remark for result in results for remark in result.warnings]
    return {
        **_norms([result.update for result in results], results[0].weight_norm),
        "losses": tuple(loss for result in results for loss in result.losses),
        "seconds": sum(sum(result.seconds.values()) for result in results),
        "warnings": tuple(dict.fromkeys([*remarks, *unreached])),
    }


def _norms(updates: Sequence[Update], weight_norm: float) -> dict[str, float]:
    """Of the updates of the weight together; what stands beside it changes nothing of it."""
    ranks = [update for update in updates if isinstance(update, RankOneUpdate)]
    if not ranks:
        return {}
    if len(ranks) == 1:
        return {"update_norm": ranks[0].norm, "weight_norm": weight_norm}
    # Of the sum of v u^T: the products of all pairs, without the matrix itself.
    u, v = (torch.stack([getattr(x, part) for x in ranks]).double() for part in ("u", "v"))
    square = float(((u @ u.T) * (v @ v.T)).sum())
    return {"update_norm": max(square, 0.0) ** 0.5, "weight_norm": weight_norm}
