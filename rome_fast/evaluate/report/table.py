"""An Evaluation in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rome_fast.evaluate.capability.table import table as capability_table
from rome_fast.evaluate.report.rows import (
    COLUMNS,
    STAGES,
    cells,
    columns_of,
    headline,
    metric_rows,
    probability,
    rules,
    worst_first,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from rome_fast.evaluate.result import CaseResult, EvaluationData

# Cases that still fit a terminal.
_WORST = 5


def tables(evaluation: EvaluationData) -> Group:
    """Metrics at every stage with 95 % intervals, drift, capability, retention, the worst cases.

    Shares and probabilities are in percent.
    """
    parts: list[RenderableType] = [Text(headline(evaluation))]
    parts += map(Text, rules(evaluation))
    columns = columns_of(evaluation)
    # A sequence has too many columns for a terminal.
    parts += [_metrics(evaluation, part) for part in (columns[:3], columns[3:]) if part]
    if evaluation.drift:
        parts.append(_drift(evaluation))
    if evaluation.capability:
        parts.append(
            capability_table({stage: of.tasks for stage, of in evaluation.capability.items()})
        )
    if evaluation.retention:
        parts.append(_retention(evaluation))
    parts += [Text("worst cases"), _cases(worst_first(evaluation)[:_WORST])]
    return Group(*parts)


def _metrics(evaluation: EvaluationData, columns: Sequence[str]) -> Table:
    # Three columns fit 80 columns only without margins; a long name of a group gives way first.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("metric", overflow="fold")
    for column in columns:
        table.add_column(COLUMNS[column], justify="right", no_wrap=True)
    table.add_column("cases", justify="right", no_wrap=True)
    group = None
    for row in metric_rows(evaluation):
        if not any(column in row.metrics for column in columns):
            continue
        if row.group != group:
            table.add_row(Text(row.group, style="bold"))
            group = row.group
        table.add_row(Text(f"  {row.name}"), *cells(row, columns), str(row.n))
    return table


def _drift(evaluation: EvaluationData) -> Table:
    table = Table("held texts", *(STAGES[stage] for stage in evaluation.drift), box=box.SIMPLE_HEAD)
    for name, meaning in (("perplexity", "perplexity"), ("kl", "KL from before, nats")):
        values = [f"{drift[name]:.4g}" for drift in evaluation.drift.values()]
        table.add_row(meaning, *values)
    return table


def _retention(evaluation: EvaluationData) -> Table:
    points = evaluation.retention
    table = Table("edits made", *(str(point.n_edits) for point in points), box=box.SIMPLE_HEAD)
    table.add_row("still said, %", *(f"{100 * point.retained:.0f}" for point in points))
    return table


def _cases(cases: list[CaseResult]) -> Table:
    # Text folds before numbers do, so that it can be read at 60 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("edit", overflow="fold", min_width=16)
    # Where nothing was written into the weight, there is no norm.
    has_norm = any(case.relative_norm is not None for case in cases)
    for name in ("before", "after", "neighbours", *(["norm"] if has_norm else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for case in cases:
        before, after = (
            case.stages[s].values if s in case.stages else {} for s in ("before", "after")
        )
        kept = after.get("neighborhood_unchanged")
        norm = "" if case.relative_norm is None else f"{case.relative_norm:.1%}"
        table.add_row(
            str(case.case_id),
            Text(
                str(case.request) if case.error is None else f"{case.request.asked}: {case.error}"
            ),
            *(probability(values) for values in (before, after)),
            "" if kept is None else f"{kept:.0%}",
            *([norm] if has_norm else []),
        )
    return table
