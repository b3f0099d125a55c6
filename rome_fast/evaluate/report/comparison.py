"""A Comparison in the terminal, and for papers and programs."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rome_fast.evaluate.report.markup import Bold, latex_table, markdown_table
from rome_fast.evaluate.report.rows import COLUMNS, number

if TYPE_CHECKING:
    from rome_fast.evaluate.differences import ComparisonData, Difference

_HEAD = ("first", "second", "difference", "95 % interval", "p", "p Holm", "cases")


def tables(comparison: ComparisonData) -> Group:
    """What is compared, a row a metric, and how it was made."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(_metric(comparison), overflow="fold")
    for name in _HEAD:
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.differences:
        texts = (Text(cell, "bold" if isinstance(cell, Bold) else "") for cell in _cells(row))
        table.add_row(Text(row.name), *texts)
    return Group(*map(Text, _heads(comparison)), table, Text(comparison.method))


def as_markdown(comparison: ComparisonData) -> str:
    """The same as a page."""
    table = markdown_table([_metric(comparison), *_HEAD], _rows(comparison))
    return "\n".join([*(f"{line}\n" for line in _lines(comparison)), table])


def as_latex(comparison: ComparisonData) -> str:
    """A tabular for the package booktabs, what was done in comments before it."""
    table = latex_table([_metric(comparison), *_HEAD], _rows(comparison))
    return "\n".join([*(f"% {line}" for line in _lines(comparison)), table])


def as_csv(comparison: ComparisonData) -> str:
    """A row a metric, unrounded."""
    file = io.StringIO()
    writer = csv.writer(file)
    names = "metric first second difference low high p p_holm cases"
    writer.writerow(names.split())
    for row in comparison.differences:
        d = row.difference
        means = (row.first, row.second, d.mean, d.low, d.high)
        writer.writerow([row.name, *means, row.p, row.corrected, d.n])
    return file.getvalue()


def _metric(comparison: ComparisonData) -> str:
    return f"metric, {COLUMNS[comparison.stage]}"


def _heads(comparison: ComparisonData) -> list[str]:
    names = ("first", "second")
    return [f"{name}: {said}" for name, said in zip(names, comparison.counted, strict=True)]


def _lines(comparison: ComparisonData) -> list[str]:
    return [*_heads(comparison), f"{comparison.method}; shares in percent"]


def _rows(comparison: ComparisonData) -> list[list[str]]:
    return [[row.name, *_cells(row)] for row in comparison.differences]


def _cells(row: Difference) -> list[str]:
    d = row.difference
    low, high = _signed(row.name, d.low), _signed(row.name, d.high)
    sure = Bold if row.is_sure else str
    return [
        *(number(row.name, x) for x in (row.first, row.second)),
        sure(_signed(row.name, d.mean)),
        f"{low}, {high}",
        f"{row.p:.2g}",
        sure(f"{row.corrected:.2g}"),
        str(d.n),
    ]


def _signed(name: str, value: float) -> str:
    shown = number(name, value)
    return shown if shown.startswith("-") else f"+{shown}"
