"""A table of many edits, one per row: what each did, and whether it holds in the finished model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from rome_fast.cli.common import console
from rome_fast.prompt.readback import greedy_continuations
from rome_fast.prompt.target import prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.scoring import Score
    from rome_fast.types import EditRequest, EditResult

# Rows of a table that still fit a terminal.
_ROWS = 25
# Of an answer that is not the target.
_ANSWER_TOKENS = 8


@dataclass(frozen=True)
class Row:
    """One edit as it was made.

    Attributes:
        took: whether the model said the target right after it.
        edit_id: its number in the journal, where there is one.
    """

    request: EditRequest
    prob_before: float
    prob_after: float
    took: bool
    warnings: tuple[str, ...]
    how: str
    seconds: float | None = None
    edit_id: int | None = None


def rows_of(results: Sequence[EditResult]) -> list[Row]:
    """The rows of the results of ``edit_many``."""
    return [
        Row(
            result.request,
            result.prob_before,
            result.prob_after,
            result.success,
            result.warnings,
            f"layer {result.layer}, {result.variant}",
            sum(result.seconds.values()),
        )
        for result in results
    ]


def print_all(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, rows: Sequence[Row]
) -> list[Row]:
    """Print a table of what each edit did and whether it holds; returns those that do not."""
    from rome_fast.evaluate.records import Question
    from rome_fast.evaluate.scoring import score

    # Later edits may take an earlier one back, so the last word is that of the finished model.
    scores = score(model, tok, [Question.of(row.request) for row in rows])
    probs = [math.exp(sum(s.log_probs)) for s in scores]
    held = sum(s.exact for s in scores)
    worst = sorted(range(len(rows)), key=lambda i: (scores[i].exact, probs[i]))[:_ROWS]
    says = _answers(model, tok, rows, scores, worst)
    console.print(_table(rows, scores, probs, says))
    if len(rows) > _ROWS:
        console.print(f"shown: the {_ROWS} that hold worst")
    for text, times in Counter(text for row in rows for text in row.warnings).items():
        console.print(f"warning ({times} edits): {text}", markup=False, soft_wrap=True)
    lost = sum(row.took and not s.exact for row, s in zip(rows, scores, strict=True))
    timed = [row.seconds for row in rows if row.seconds is not None]
    pace = f", {sum(timed) / len(timed):.2f} s an edit" if timed else ""
    console.print(
        f"{held} of {len(rows)} edits hold, {lost} took and were lost to later ones; "
        f"{rows[0].how}{pace}",
        soft_wrap=True,
    )
    return [row for row, s in zip(rows, scores, strict=True) if not s.exact]


def _answers(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    scores: Sequence[Score],
    shown: Sequence[int],
) -> dict[int, str]:
    """What the finished model writes after some of the prompts; the target where it holds."""
    asked = {i: rows[i].request for i in sorted(shown)}
    lost = [i for i in asked if not scores[i].exact]
    prompts = [asked[i].text for i in lost]
    ids = prompt_ids(tok, prompts, [asked[i].conversation for i in lost])
    written = greedy_continuations(model, tok, ids, _ANSWER_TOKENS) if lost else []
    said = dict(zip(lost, written, strict=True))
    return {i: said.get(i, request.target).strip() for i, request in asked.items()}


def _table(
    rows: Sequence[Row], scores: Sequence[Score], probs: Sequence[float], says: dict[int, str]
) -> Table:
    """Text folds before numbers do, so that it can be read at 60 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("edit", overflow="fold", min_width=16)
    for name in ("before", "after", "end"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("model says", overflow="fold", max_width=20)
    for i, said in says.items():
        row = rows[i]
        table.add_row(
            str(i),
            Text(str(row.request)),
            *(f"{prob:.3f}" for prob in (row.prob_before, row.prob_after, probs[i])),
            Text(said, style="" if scores[i].exact else "red"),
        )
    return table
