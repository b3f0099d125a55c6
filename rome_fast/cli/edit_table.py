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
from rome_fast.prompt.ids import decode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.scoring import Score
    from rome_fast.types import EditRequest, EditResult

# Rows of a table that still fit a terminal.
_ROWS = 25


@dataclass(frozen=True)
class Row:
    """One edit as it was made.

    Attributes:
        took: whether the model said the target right after it.
    """

    request: EditRequest
    prob_before: float
    prob_after: float
    took: bool
    warnings: tuple[str, ...]
    how: str
    seconds: float | None = None


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


def print_all(model: PreTrainedModel, tok: PreTrainedTokenizerBase, rows: Sequence[Row]) -> bool:
    """Print a table of what each edit did and whether it holds; True if any does not."""
    from rome_fast.evaluate.records import Question
    from rome_fast.evaluate.scoring import score

    # Later edits may take an earlier one back, so the last word is that of the finished model.
    scores = score(model, tok, [Question.of(row.request) for row in rows])
    probs = [math.exp(sum(s.log_probs)) for s in scores]
    held = sum(s.exact for s in scores)
    worst = sorted(range(len(rows)), key=lambda i: (scores[i].exact, probs[i]))[:_ROWS]
    console.print(_table(tok, rows, scores, probs, sorted(worst)))
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
    return held < len(rows)


def _table(
    tok: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    scores: Sequence[Score],
    probs: Sequence[float],
    shown: Sequence[int],
) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "prompt", "target", "before", "after", "in the end", "model says"):
        table.add_column(name, no_wrap=name != "prompt")
    for i in shown:
        row, score = rows[i], scores[i]
        table.add_row(
            str(i),
            Text(row.request.asked),
            Text(row.request.target.strip()),
            f"{row.prob_before:.3f}",
            f"{row.prob_after:.3f}",
            f"{probs[i]:.3f}",
            Text(decode(tok, score.argmax_ids).strip(), style="" if score.exact else "red"),
        )
    return table
