"""Where a command will write, checked before the work: nobody waits an hour for an error."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rome_fast.errors import InvalidArgumentError


def check_file(
    option: str, path: Path | None, suffixes: Sequence[str] = (), *, new: bool = False
) -> None:
    """Refuse a file that could not be written; None names none.

    Raises:
        InvalidArgumentError: a wrong suffix, no such folder, or the path is a folder.
        OSError: it exists and ``new`` asks for another, or it cannot be written.
    """
    if path is None:
        return
    if suffixes and path.suffix not in suffixes:
        raise InvalidArgumentError(f"{option} {path} must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise InvalidArgumentError(f"{option} {path} is a folder: name a file")
    if new and os.path.lexists(path):
        raise FileExistsError(f"{option} {path} exists: name a new file")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InvalidArgumentError(f"{option} {path}: there is no folder {str(folder)!r}")
    _check_writable(option, path, folder)
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{option} {path} cannot be written to")


def check_folder(option: str, path: Path | None) -> None:
    """Refuse a folder that is not empty, or could not be made; None names none.

    Raises:
        OSError: says which.
    """
    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{option} {path} is a file: name a new folder")
    if path.exists() and any(path.iterdir()):
        raise FileExistsError(f"{option} {path} is not empty: name a new folder")
    whole = path.absolute()
    nearest = next(folder for folder in (whole, *whole.parents) if os.path.lexists(folder))
    if not nearest.is_dir():
        raise NotADirectoryError(f"{option} {path}: {nearest} is a file, no folder")
    _check_writable(option, path, nearest)


def _check_writable(option: str, path: Path, folder: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"{option} {path} cannot be written: {error}") from error
