"""Two evaluations of the same records, edited in two ways, side by side."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.atomic_files import write_text
from rome_fast.errors import InvalidArgumentError
from rome_fast.evaluate.differences import ComparisonData, differences
from rome_fast.evaluate.metrics import stage_rows
from rome_fast.evaluate.report.rows import counted
from rome_fast.evaluate.result import EvaluationData

if TYPE_CHECKING:
    from rich.console import Group


class Comparison(ComparisonData):
    """What ``compare`` returns.

    Attributes:
        stage: of both evaluations.
        counted: what became of the records of the first, and of the second.
        n_pairs: cases that are in both; the others are in no figure.
        differences: a row a metric: ``name``, ``first`` and ``second``, the ``difference`` with its
            95 % interval, ``p`` and ``corrected``.
    """

    def save(self, path: str | Path) -> None:
        """Write it as one file, atomically: .md, .csv, .tex (booktabs), or else JSON."""
        from rome_fast.evaluate.report.comparison import as_csv, as_latex, as_markdown

        tables = {".csv": as_csv, ".tex": as_latex, ".md": as_markdown}
        write_text(path, tables.get(Path(path).suffix.lower(), _as_json)(self))

    def __rich__(self) -> Group:
        from rome_fast.evaluate.report.comparison import tables

        return tables(self)


def compare(first: EvaluationData, second: EvaluationData, stage: str = "after") -> Comparison:
    """Every metric that both have, paired by record, with intervals and p-values.

    Intervals are of a bootstrap over the records, p-values of the sign-flip test over them, and
    corrected by Holm for the number of metrics (docs/metrics.md). The same evaluations give the
    same figures.

    Args:
        stage: "after", or of sequences "edit_time".

    Raises:
        InvalidArgumentError: one has no such stage, or no record of the one is in the other.
    """
    rows = [_rows(of, stage) for of in (first, second)]
    shared = [key for key in rows[0] if key in rows[1]]
    if not shared:
        raise InvalidArgumentError(
            "no case of the one evaluation is in the other: compare two of the same records"
        )
    return Comparison(
        stage,
        (counted(first), counted(second)),
        len(shared),
        differences(*([of[key] for key in shared] for of in rows)),
    )


def _rows(evaluation: EvaluationData, stage: str) -> dict[Any, Mapping[str, float]]:
    """Values by record; of records that are there several times the first goes with the first."""
    if stage not in evaluation.metrics:
        raise InvalidArgumentError(
            f"stage must be one that both evaluations have, got {stage!r}; one has "
            f"{', '.join(evaluation.metrics) or 'none'}"
        )
    seen: Counter[Any] = Counter()
    rows: dict[Any, Mapping[str, float]] = {}
    values = stage_rows(evaluation.cases, stage)
    for case, row in zip(evaluation.cases, values, strict=True):
        record = (case.case_id, case.request)
        rows[record, seen[record]] = row
        seen[record] += 1
    return rows


def _as_json(comparison: ComparisonData) -> str:
    fields = {"format": "rome_fast.comparison.1", **asdict(comparison), "method": comparison.method}
    return json.dumps(fields, ensure_ascii=False, indent=1)
