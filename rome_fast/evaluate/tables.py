"""Records in tables: text with a separator, as spreadsheets export it, and Excel's own .xlsx."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import IO, Any

from rome_fast.errors import InvalidArgumentError, InvalidRequestError, MissingExtraError
from rome_fast.evaluate.formats import JSON_COLUMNS

_SEPARATORS = ",;\t"

# (line of the file, record or the reason why it cannot be one)
Row = tuple[int, Any]


def rows_of_text(file: IO[str]) -> Iterator[Row]:
    """The rows of a file whose separator is the one that makes most columns of its first line."""
    first = next(file, "")
    if first.lower().startswith("sep="):  # how Excel is told what the separator is
        separator = first[len("sep=") :].strip("\r\n") or ","
        reader, skipped = csv.reader(file, delimiter=separator), 1
    else:
        separator = max(_SEPARATORS, key=lambda s: len(next(csv.reader([first], delimiter=s), ())))
        reader, skipped = csv.reader(chain([first], file), delimiter=separator), 0
    return _records((reader.line_num + skipped, cells) for cells in reader)


def rows_of_xlsx(path: Path) -> Iterator[Row]:
    """The rows of the first sheet; whatever a cell holds is read as text.

    Raises:
        MissingExtraError: python-calamine is not installed.
        InvalidArgumentError: the file cannot be read.
    """
    try:
        import python_calamine as calamine
    except ImportError as error:
        raise MissingExtraError(
            f"source {path}: reading .xlsx needs python-calamine: pip install "
            "'rome-fast[tables]', or save the sheet as CSV"
        ) from error
    try:
        sheet = calamine.load_workbook(str(path)).get_sheet_by_index(0)
        rows = sheet.to_python(skip_empty_area=False)
    except (calamine.CalamineError, OSError, IndexError) as error:
        raise InvalidArgumentError(f"source {path} cannot be read: {error}") from error
    return _records(
        (number, [_as_text(cell) for cell in row]) for number, row in enumerate(rows, 1)
    )


def _records(rows: Iterable[tuple[int, Sequence[str]]]) -> Iterator[Row]:
    """Dicts by the names of the first row that is not empty; an empty cell is None."""
    names: list[str] | None = None
    for number, cells in rows:
        cells = _without_empty_end(cells)
        if not cells:
            continue
        if names is None:
            names = _names(cells)
        elif len(cells) > len(names):
            yield number, InvalidRequestError("it has more cells than there are columns")
        else:
            found = [cell if cell.strip() else None for cell in cells]
            yield number, _decoded(dict(zip_longest(names, found)))


def _names(cells: Sequence[str]) -> list[str]:
    """Columns' names as records have them, whatever their spaces and capitals."""
    names = ["_".join(cell.lower().split()) for cell in cells]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise InvalidArgumentError(f"source: several columns are named {', '.join(twice)}")
    return names


def _without_empty_end(cells: Sequence[str]) -> list[str]:
    kept = list(cells)
    while kept and not kept[-1].strip():
        kept.pop()
    return kept


def _as_text(cell: Any) -> str:
    """A number of a spreadsheet is a float, also where it is whole."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _decoded(row: dict[str, Any]) -> Any:
    """The row with the lists and dicts that its cells spell in JSON."""
    for key in JSON_COLUMNS & {name for name, cell in row.items() if cell is not None}:
        cell = row[key]
        # Spreadsheets write TRUE.
        cell = cell.lower() if cell.lower() in ("true", "false") else cell
        if cell.startswith(("[", "{")) or key in ("chat", "space"):
            row[key] = parsed_json(cell, f"column {key}")
            if isinstance(row[key], InvalidRequestError):
                return row[key]
    return row


def parsed_json(text: str, name: str) -> Any:
    """What the text holds, or the reason why it cannot be read."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return InvalidRequestError(f"{name} is not JSON: {error}")
