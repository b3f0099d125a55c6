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
from rome_fast.prompt.subject import cuts_a_word

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.scoring import Score
    from rome_fast.types import EditRequest, EditResult

# Rows of a table that still fit a terminal.
_ROWS = 25
# Of an answer.
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
    says = _answers(model, tok, rows, scores)
    holds = [s.exact and not _runs_on(*pair) for s, pair in zip(scores, says, strict=True)]
    worst = sorted(range(len(rows)), key=lambda i: (holds[i], probs[i]))[:_ROWS]
    console.print(_table(rows, probs, says, holds, sorted(worst)))
    if len(rows) > _ROWS:
        console.print(f"shown: the {_ROWS} that hold worst")
    for text, times in Counter(text for row in rows for text in row.warnings).items():
        console.print(f"warning ({times} edits): {text}", markup=False, soft_wrap=True)
    lost = sum(row.took and not held for row, held in zip(rows, holds, strict=True))
    timed = [row.seconds for row in rows if row.seconds is not None]
    pace = f", {sum(timed) / len(timed):.2f} s an edit" if timed else ""
    console.print(
        f"{sum(holds)} of {len(rows)} edits hold, {lost} took and were lost to later ones; "
        f"{rows[0].how}{pace}",
        soft_wrap=True,
    )
    return [row for row, held in zip(rows, holds, strict=True) if not held]


def _answers(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    scores: Sequence[Score],
) -> list[tuple[str, str]]:
    """Of each edit what the finished model writes: the target, if it does, and what follows."""
    from rome_fast.evaluate.generation import generate

    asked = [row.request for row in rows]
    n_tokens = max(_ANSWER_TOKENS, 1 + max(len(s.target_ids) for s in scores))
    chats = [request.conversation for request in asked]
    written = generate(model, tok, [request.text for request in asked], n_tokens, chats=chats)
    return [
        (target, text.strip()[len(target) :]) if text.strip().startswith(target) else ("", text)
        for text, target in zip(written, (r.target.strip() for r in asked), strict=True)
    ]


def _runs_on(target: str, then: str) -> bool:
    return bool(target) and cuts_a_word(target + then, (0, len(target)))


def _table(
    rows: Sequence[Row],
    probs: Sequence[float],
    says: Sequence[tuple[str, str]],
    holds: Sequence[bool],
    shown: Sequence[int],
) -> Table:
    """Text folds before numbers do, so that it can be read at 60 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("edit", overflow="fold", min_width=16)
    for name in ("before", "after", "end"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("model says", overflow="fold", max_width=20)
    for i in shown:
        row, said = rows[i], rows[i].request.target if holds[i] else "".join(says[i])
        table.add_row(
            str(i),
            Text(str(row.request)),
            *(f"{prob:.3f}" for prob in (row.prob_before, row.prob_after, probs[i])),
            Text(said.strip(), style="" if holds[i] else "red"),
        )
    return table
