"""An Evaluation for other programs: rows of cases, and the metrics in LaTeX and Markdown."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from rome_fast.evaluate.report.markup import latex_table, markdown_table
from rome_fast.evaluate.report.rows import (
    COLUMNS,
    cells,
    columns_of,
    headline,
    metric_rows,
    rules,
)

if TYPE_CHECKING:
    from rome_fast.evaluate.result import CaseResult, EvaluationData


def case_rows(evaluation: EvaluationData) -> list[dict[str, Any]]:
    """A row a case: what was asked, and each value under ``stage.name``; None where it has none.

    Under ``change.name`` is the value after minus that before.
    """
    rows: list[dict[str, Any]] = [
        {
            "case_id": case.case_id,
            "prompt": case.request.asked,
            "subject": case.request.subject,
            "target": case.request.target.strip(),
            "relative_norm": case.relative_norm,
            "seconds": case.seconds,
            "error": case.error,
            **{
                f"{stage}.{name}": value
                for stage, of in case.stages.items()
                for name, value in of.values.items()
            },
            **_change(case),
        }
        for case in evaluation.cases
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _change(case: CaseResult) -> dict[str, float]:
    if not ("before" in case.stages and "after" in case.stages):
        return {}
    before, after = (case.stages[stage].values for stage in ("before", "after"))
    return {f"change.{name}": after[name] - before[name] for name in after if name in before}


def as_csv(evaluation: EvaluationData) -> str:
    """The rows of the cases; an empty cell where a case has no value."""
    rows, file = case_rows(evaluation), io.StringIO()
    writer = csv.DictWriter(file, rows[0] if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def as_latex(evaluation: EvaluationData) -> str:
    """A tabular of all metrics with their intervals, for the package booktabs.

    What was done is said in comments before it.
    """
    head = [f"% {line}" for line in _head(evaluation)]
    return "\n".join([*head, latex_table(*_table(evaluation))])


def as_markdown(evaluation: EvaluationData) -> str:
    """What was done, and a table of all metrics with their intervals."""
    head = [f"{line}\n" for line in _head(evaluation)]
    return "\n".join([*head, markdown_table(*_table(evaluation))])


def _head(evaluation: EvaluationData) -> list[str]:
    units = "means with 95 % intervals, the change paired by case; shares in percent"
    return [" ".join(line.split()) for line in (headline(evaluation), *rules(evaluation), units)]


def _table(evaluation: EvaluationData) -> tuple[list[str], list[list[str]]]:
    columns = columns_of(evaluation)
    head = ["metric", *(COLUMNS[column] for column in columns), "cases"]
    rows = metric_rows(evaluation)
    return head, [[row.name, *cells(row, columns), str(row.n)] for row in rows]
