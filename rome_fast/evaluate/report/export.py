"""An Evaluation for other programs: rows of cases, and a LaTeX table of the metrics."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from rome_fast.evaluate.report.rows import STAGES, interval, metric_rows, stages_of

if TYPE_CHECKING:
    from rome_fast.evaluate.result import EvaluationData


def case_rows(evaluation: EvaluationData) -> list[dict[str, Any]]:
    """A row a case: what was asked, and each value under ``stage.name``; None where it has none."""
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
        }
        for case in evaluation.cases
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def as_csv(evaluation: EvaluationData) -> str:
    """The rows of the cases; an empty cell where a case has no value."""
    rows, file = case_rows(evaluation), io.StringIO()
    writer = csv.DictWriter(file, rows[0] if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def as_latex(evaluation: EvaluationData) -> str:
    """A tabular of all metrics with their intervals, for the package booktabs."""
    stages = stages_of(evaluation)
    head = " & ".join(["", *(STAGES[stage] for stage in stages), "cases"])
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(stages)}r}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
    ]
    for row in metric_rows(evaluation):
        shown = [interval(row.name, row.metrics[s]) if s in row.metrics else "" for s in stages]
        n = max(metric.n for metric in row.metrics.values())
        cells = [row.name.replace("_", r"\_"), *(_in_latex(cell) for cell in shown), str(n)]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _in_latex(cell: str) -> str:
    return f"${cell.replace('±', chr(92) + 'pm')}$" if cell else ""
