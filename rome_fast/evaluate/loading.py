"""Records from files, lists and data sets; a bad one is named with its place and its reason."""

from __future__ import annotations

import csv
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rome_fast.errors import (
    InvalidArgumentError,
    InvalidRequestError,
    RecordError,
    RecordWarning,
    warn,
)
from rome_fast.evaluate.formats import FORMATS, Format, parse_record, unread
from rome_fast.evaluate.records import EditRecord, Records
from rome_fast.evaluate.tables import parsed_json, rows_of_text, rows_of_xlsx
from rome_fast.text_files import not_utf8
from rome_fast.types import EditRequest

# Reasons that one warning spells out.
_SHOWN = 10
_EXCEL = ".xlsx"

# (line of the file if it has lines, record or the reason why it cannot be one)
_Item = tuple[int | None, Any]


def load_records(
    source: str | os.PathLike[str] | Iterable[Any],
    format: str = "auto",
    *,
    on_error: str = "raise",
    limit: int | None = None,
) -> Records:
    """Read edits, and what they are judged by, in any published layout.

    Args:
        source: a file (.json with a list, .jsonl, .csv, .tsv, also with .gz, or .xlsx), a list of
            dicts or of EditRequests, a `datasets` Dataset, or the hub name ``owner/name`` of one.
            EditRecords are returned as they are.
        format: a layout of docs/datasets.md: ``"flat"``, ``"counterfact"``, ``"zsre"``,
            ``"zsre_rome"``, ``"qaedit"``, ``"wikibigedit"``, ``"mquake"``, ``"ripple_edits"``,
            ``"unke"`` or ``"akew"``; ``"auto"`` recognises it by the keys of the first record that
            fits one. Keys that it does not know are named once, in a RecordWarning, and questions
            without an answer are counted in one.
        on_error: ``"raise"`` stops at the first bad record; ``"skip"`` leaves bad ones out and
            gives their reasons in one RecordWarning; their number is in the list's ``n_skipped``,
            and ``evaluate`` counts them as failures.
        limit: how many records to return at most; what comes after them is not read.

    Returns:
        EditRecords in order. One without a ``case_id`` has its position in the source, from 0.

    Raises:
        RecordError: a record is bad, or all are; the message says which (line, for JSONL and CSV)
            and why.
        InvalidArgumentError: the source cannot be read, or its layout is none of those known.
        MissingExtraError: an .xlsx file, and python-calamine is not installed.
    """
    if format != "auto" and format not in FORMATS:
        raise InvalidArgumentError(f"format must be one of {['auto', *FORMATS]}, got {format!r}")
    if on_error not in ("raise", "skip"):
        raise InvalidArgumentError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InvalidArgumentError(f"limit must be a whole number of 1 or more, got {limit!r}")
    name, items = _opened(source)
    reader = _Reader(None if format == "auto" else FORMATS[format])
    records: list[EditRecord] = []
    bad: list[str] = []
    for index, (line, item) in enumerate(items):
        try:
            records.append(reader.read(item, index))
        except InvalidRequestError as error:
            place = f"record {index}" if line is None else f"record {index} (line {line})"
            bad.append(f"{place}: {error}")
            if on_error == "raise":
                raise RecordError(f"{name}: {bad[0]}") from error
        if len(records) == limit:
            break
    if bad and not records:
        raise RecordError(f"{name}: all {len(bad)} records are bad, the first one: {bad[0]}")
    if not records:
        raise InvalidArgumentError(f"{name} holds no records")
    if reader.unread:
        warn(f"{name}: nothing reads the keys {', '.join(reader.unread)}", RecordWarning)
    if reader.unanswered:
        counts = ", ".join(f"{n} of {group}" for group, n in reader.unanswered.items())
        warn(f"{name}: left out questions without an answer: {counts}", RecordWarning)
    if bad:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        warn(
            f"{name}: left out {len(bad)} of {len(bad) + len(records)} records: "
            + "; ".join(bad[:_SHOWN])
            + more,
            RecordWarning,
        )
    # Records that come from here have left out theirs already; some of them have not.
    earlier = getattr(source, "n_skipped", 0) if limit is None else 0
    return Records(records, len(bad) + earlier)


class _Reader:
    """Reads records of one layout, decided by the first record that fits a known one."""

    def __init__(self, layout: Format | None) -> None:
        self._layout = layout
        self.unread: dict[str, None] = {}
        self.unanswered: Counter[str] = Counter()

    def read(self, item: Any, index: int) -> EditRecord:
        """Raise InvalidRequestError with the reason when it is bad."""
        if isinstance(item, EditRecord):
            return item
        if isinstance(item, EditRequest):
            return EditRecord(case_id=index, request=item)
        if isinstance(item, InvalidRequestError):
            raise item
        if not isinstance(item, Mapping):
            raise InvalidRequestError(f"a dict is needed, got {type(item).__name__}: {item!r:.80}")
        self._layout = self._layout or _recognised(item)
        self.unread |= dict.fromkeys(unread(item, self._layout))
        return parse_record(item, self._layout, index, self.unanswered)


def _recognised(item: Mapping[str, Any]) -> Format:
    for layout in FORMATS.values():
        if layout.matches(item):
            return layout
    known = "; ".join(f"{name} ({layout})" for name, layout in FORMATS.items())
    raise InvalidRequestError(
        f"its keys are those of no known layout: {', '.join(map(str, item))}. Known: {known}"
    )


def _opened(source: Any) -> tuple[str, Iterator[_Item]]:
    """(name for messages, records with their lines) of any source."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            return str(source), _from_hub(str(source))
        return path.name, _from_file(path)
    if isinstance(source, Mapping):
        raise InvalidArgumentError(
            f"source is a mapping with keys {', '.join(map(repr, source))}: pass a list, or one of "
            "its values (a data set without split= is such a mapping)"
        )
    if not isinstance(source, Iterable):
        raise InvalidArgumentError(
            f"source must be a file, a list of records or a data set, got {type(source).__name__}"
        )
    return "source", ((None, item) for item in source)


def _from_hub(name: str) -> Iterator[_Item]:
    missing = f"source: there is no file {name!r}"
    if name.count("/") != 1 or name[0] in "./~" or _suffix(Path(name)) in (*_READERS, _EXCEL):
        raise InvalidArgumentError(missing)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InvalidArgumentError(
            f"{missing}; to read it from the hub: pip install 'rome-fast[data]'"
        ) from error
    try:
        splits = load_dataset(name)
    except Exception as error:  # whatever hub, network and parquet say
        raise InvalidArgumentError(f"{missing}, and as a hub name: {error}") from error
    if len(splits) > 1:
        raise InvalidArgumentError(
            f"source: {name!r} has the splits {', '.join(splits)}: pass "
            f"datasets.load_dataset({name!r}, split=...)"
        )
    return ((None, item) for item in next(iter(splits.values())))


def _from_file(path: Path) -> Iterator[_Item]:
    suffix = _suffix(path)
    if path.suffix.lower() == _EXCEL:
        yield from rows_of_xlsx(path)
        return
    if suffix not in _READERS:
        raise InvalidArgumentError(
            f"source {path}: its name must end in {', '.join(_READERS)}, with or without .gz, or "
            f"in {_EXCEL}"
        )
    opened: Callable[..., IO[str]] = gzip.open if path.suffix == ".gz" else open
    try:
        # A CSV from a spreadsheet may begin with a byte order mark; cells may hold line ends.
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield from _READERS[suffix](file)
    except UnicodeError as error:
        raise InvalidArgumentError(f"source {path} {not_utf8(path, error)}") from error
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise InvalidArgumentError(f"source {path} cannot be read: {error}") from error


def _suffix(path: Path) -> str:
    inner = Path(path.stem) if path.suffix == ".gz" else path
    return inner.suffix.lower()


def _from_json(file: IO[str]) -> Iterator[_Item]:
    try:
        records = json.load(file)
    except json.JSONDecodeError as error:
        lines = " (one record a line? Then name it .jsonl)" if error.msg == "Extra data" else ""
        raise InvalidArgumentError(f"source: the file is not JSON: {error}{lines}") from error
    if not isinstance(records, list):
        keys = f" with keys {', '.join(records)}" if isinstance(records, dict) else ""
        raise InvalidArgumentError(
            f"source: the file holds one {type(records).__name__}{keys}, not a list"
        )
    return ((None, item) for item in records)


def _from_jsonl(file: IO[str]) -> Iterator[_Item]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, parsed_json(line, "the line")


_READERS: dict[str, Callable[[IO[str]], Iterator[_Item]]] = {
    ".json": _from_json,
    ".jsonl": _from_jsonl,
    ".csv": rows_of_text,
    ".tsv": rows_of_text,
}
