"""The options that say which records to read, for all commands that read some."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rome_fast.errors import InvalidArgumentError
from rome_fast.text_files import not_utf8

if TYPE_CHECKING:
    from rome_fast.evaluate.records import EditRecord

FormatOption = Annotated[
    str,
    typer.Option(
        help="layout of the file: auto, flat, counterfact, zsre, zsre_rome, qaedit, wikibigedit, "
        "mquake, ripple_edits, unke or akew"
    ),
]
LimitOption = Annotated[
    int | None, typer.Option(help="read so many records at most", show_default="all")
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="leave out bad records and say why, instead of stopping")
]


def read_records(
    option: str, file: Path, format: str, limit: int | None, skip_bad: bool
) -> list[EditRecord]:
    """The records of a file; ``option`` is what names it on the command line."""
    from rome_fast.evaluate.loading import load_records

    if not file.is_file():
        raise InvalidArgumentError(f"{option}: there is no file {str(file)!r}")
    return load_records(file, format, on_error="skip" if skip_bad else "raise", limit=limit)


def lines_of(option: str, path: Path) -> list[str]:
    """The lines of a text file that are not empty; ``option`` is what names it."""
    try:
        texts = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{option} {path} {not_utf8(path, error)}") from error
    except OSError as error:
        raise InvalidArgumentError(f"{option} {path} cannot be read: {error}") from error
    return [text for text in texts if text.strip()]
