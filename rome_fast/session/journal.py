"""A Session's journal while it is written: on the disk before an edit is acknowledged.

One open file for the whole Session. ``end`` is where its acknowledged records end; anything after
it, left by an error, is not a record and is cut off.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from rome_fast.atomic_files import write_whole
from rome_fast.editlog.journal import FIRST_LINE, Record, read_records
from rome_fast.errors import JournalError, SessionWarning, warn

if TYPE_CHECKING:
    from io import FileIO

    from rome_fast.moment.second_moment import SecondMoment


class Journal:
    """The file of one Session, which no other process can open meanwhile.

    Attributes:
        path: resolved once: a later ``os.chdir`` does not move it.
        end: where the records that count end, in bytes.

    Raises:
        JournalError: it cannot be opened or locked.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.end = Path(path).resolve(), 0
        self._file: FileIO | None = None
        if self.path.exists() and not self.path.is_file():
            raise self._error("is no regular file: name another")
        # Held by the process, not by a thread: another thread may close the Session.
        self._lock = FileLock(f"{self.path}.lock", timeout=0, thread_local=False)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except (OSError, Timeout) as error:
            reason = "another Session has it open" if isinstance(error, Timeout) else error
            raise self._error(f"cannot be opened: {reason}") from error

    def check_new(self) -> None:
        """Raise JournalError if there is a journal, or anything else, in the file."""
        if self.path.exists() and self.path.stat().st_size:
            raise self._error(
                "exists already: Session.resume(path, model, tok) goes on with it; or name another"
            )

    @property
    def moment_path(self) -> Path:
        """Where a second moment is kept that nobody could pass again on resuming."""
        return self.path.with_name(f"{self.path.name}.moment.safetensors")

    def create(self, first: Record, moment: SecondMoment | None) -> None:
        """Begin a new file; it is there with its first record and the moment, or not at all.

        Args:
            moment: to be kept beside it.
        """
        data = FIRST_LINE + bytes(first)
        try:
            if moment is not None:
                moment.save(self.moment_path)
                _sync(self.moment_path)
            write_whole(self.path, lambda partial: _store(partial, data))
            _sync_folder(self.path.parent)
            self._file = self.path.open("r+b", buffering=0)
        except BaseException as error:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
                self.moment_path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise self._error(f"cannot be written: {error}") from error
            raise
        self.end = len(data)

    def reopen(self) -> list[Record]:
        """Read an existing file; a torn last record is dropped, with a warning."""
        records, self.end, torn = read_records(self.path)
        if torn:
            warn(
                f"journal {str(self.path)!r}: the last record was torn ({torn} bytes) and is "
                "dropped; it was never acknowledged",
                SessionWarning,
            )
        try:
            self._file = self.path.open("r+b", buffering=0)
            self._cut()
        except OSError as error:
            raise self._error(f"cannot be written: {error}") from error
        return records

    def append(self, *records: Record) -> None:
        """Write records to the disk. After an error, here or later, ``cut_back`` removes them.

        Raises:
            JournalError: they cannot be written, or the file is no longer the one of this path.
        """
        data = b"".join(map(bytes, records))
        file = self._opened()
        try:
            self._cut()
            file.seek(self.end)
            left = memoryview(data)
            while left:
                left = left[file.write(left) or 0 :]
            os.fsync(file.fileno())
            in_place = self._is_in_place()
        except JournalError:
            raise
        except OSError as error:
            raise self._error(f"cannot be written: {error}") from error
        if not in_place:
            raise self._error(
                "was moved, deleted or replaced while the Session has it open: put it back"
            )
        self.end += len(data)

    def cut_back(self, end: int) -> None:
        """Set the end of the records back to where it was, and cut the file there."""
        self.end = end
        with suppress(OSError):  # what the disk does not take now, the next write cuts off
            self._cut()

    def close(self) -> None:
        """Let others open the file."""
        if self._file is not None:
            self.cut_back(self.end)
            self._file.close()
        self._lock.release()

    def _opened(self) -> FileIO:
        assert self._file is not None
        return self._file

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._opened().fileno()))
        except FileNotFoundError:
            return False

    def _cut(self) -> None:
        """Cut off what is behind the records."""
        handle = self._opened().fileno()
        size = os.fstat(handle).st_size
        if size < self.end:
            raise self._error(
                f"was cut short by something else: it has {size} bytes, and {self.end} were written"
            )
        if size > self.end:
            os.ftruncate(handle, self.end)

    def _error(self, reason: object) -> JournalError:
        return JournalError(f"journal {str(self.path)!r} {reason}")


def _store(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _sync(path)


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Put a new file's name on the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
