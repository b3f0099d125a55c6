"""A Session's records on disk: appended, and on the disk before an edit is acknowledged.

The file is a line that names the format, then frames: a mark of 4 bytes, the payload's length (8
bytes, little endian), its SHA-256, and the payload, which is a safetensors file of its own:
tensors, and one JSON object as metadata. A last frame that was torn by the end of the process is
dropped; one with whole frames behind it is damage, and an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import FileLock, Timeout

from rome_fast.editlog.base import Base
from rome_fast.editlog.files import edit_from_json, rejection_from_json
from rome_fast.editlog.log import EditLog
from rome_fast.errors import EditLogError, JournalError, SessionWarning

if TYPE_CHECKING:
    from torch import Tensor

_FIRST_LINE = b"rome_fast.journal.1\n"
_MARK = b"\xf5RF1"
_HEAD = struct.Struct("<4sQ32s")


@dataclass(frozen=True, eq=False)
class Record:
    """What happened: ``fields["kind"]`` is "session", "edit", "undo", "redo", ..."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def __bytes__(self) -> bytes:
        from safetensors.torch import save

        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors.items()}
        payload = save(tensors, {"record": json.dumps(dict(self.fields), ensure_ascii=False)})
        return _HEAD.pack(_MARK, len(payload), hashlib.sha256(payload).digest()) + payload

    @classmethod
    def of(cls, payload: bytes) -> Record:
        """What a frame holds."""
        from safetensors.torch import load

        size = int.from_bytes(payload[:8], "little")
        metadata = json.loads(payload[8 : 8 + size])["__metadata__"]
        return cls(json.loads(metadata["record"]), load(payload))


class Journal:
    """The file of one Session, which no other process can open meanwhile.

    Raises:
        JournalError: it cannot be created, opened or locked.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = FileLock(f"{self.path}.lock", timeout=0)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except (OSError, Timeout) as error:
            reason = "another Session has it open" if isinstance(error, Timeout) else error
            raise self._error(f"cannot be opened: {reason}") from error
        self._end = 0

    def create(self, first: Record) -> None:
        """Begin a new file."""
        if self.path.exists() and self.path.stat().st_size:
            raise self._error(
                "exists already: Session.resume(path, model, tok) goes on with it; or name another"
            )
        self._write(_FIRST_LINE + bytes(first))
        _sync_folder(self.path.parent)

    def reopen(self) -> list[Record]:
        """Read an existing file; what a torn end left behind is dropped, with a warning."""
        records, self._end, torn = _read(self.path)
        if torn:
            warnings.warn(
                f"journal {str(self.path)!r}: the last record was torn ({torn} bytes) and is "
                "dropped; it was never acknowledged",
                SessionWarning,
                stacklevel=4,
            )
        try:
            os.truncate(self.path, self._end)
        except OSError as error:
            raise self._error(f"cannot be written: {error}") from error
        return records

    def append(self, *records: Record) -> None:
        """Put records on the disk.

        Raises:
            JournalError: they cannot be written; the file is as it was.
        """
        self._write(b"".join(map(bytes, records)))

    def close(self) -> None:
        """Let others open the file."""
        self._lock.release()

    def _write(self, data: bytes) -> None:
        try:
            with self.path.open("ab") as file:
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                except BaseException:
                    # Also for Ctrl-C: half a record would hide those that follow it.
                    os.ftruncate(file.fileno(), self._end)
                    raise
        except OSError as error:
            raise self._error(f"cannot be written: {error}") from error
        self._end += len(data)

    def _error(self, reason: object) -> JournalError:
        return JournalError(f"journal {str(self.path)!r} {reason}")


def is_journal(path: Path) -> bool:
    """Whether a file begins like a journal."""
    with path.open("rb") as file:
        return file.read(len(_FIRST_LINE)) == _FIRST_LINE


def read_log(path: Path) -> EditLog:
    """The log in a journal, without the Session.

    Raises:
        EditLogError: it is damaged.
    """
    try:
        records, _, _ = _read(path)
        return replay(records)
    except JournalError as error:
        raise EditLogError(str(error)) from error


def replay(records: list[Record]) -> EditLog:
    """The log that the records tell of."""
    log = EditLog(Base.from_json(records[0].fields["base"]))
    for record in records[1:]:
        fields = record.fields
        if fields["kind"] == "edit":
            log.edits.append(
                edit_from_json(fields["edit"], record.tensors["u"], record.tensors["v"])
            )
        elif fields["kind"] == "taken_out":
            log.taken_out = set(fields["edits"])
        elif fields["kind"] == "rejection":
            log.rejections.append(rejection_from_json(fields["rejection"]))
    return log


def _read(path: Path) -> tuple[list[Record], int, int]:
    """(records, where the whole ones end, how many bytes follow)."""
    if not path.is_file():
        raise JournalError(f"there is no journal {str(path)!r}")
    records, size = [], path.stat().st_size
    with path.open("rb") as file:
        if file.readline() != _FIRST_LINE:
            raise JournalError(f"{str(path)!r} is not a Session's journal")
        end = file.tell()
        while (payload := _next_payload(file)) is not None:
            try:
                records.append(Record.of(payload))
            except (ValueError, KeyError) as error:
                raise JournalError(f"journal {str(path)!r} is damaged: {error}") from error
            end = file.tell()
        if _holds_a_frame(file, end):
            raise JournalError(
                f"journal {str(path)!r} is damaged at byte {end}, after {len(records) - 1} "
                "records, and whole ones follow: nothing was changed; restore the file from a copy"
            )
    if not records:
        raise JournalError(f"journal {str(path)!r} has lost its first record: delete it")
    return records, end, size - end


def _next_payload(file: BinaryIO) -> bytes | None:
    """None at the end, and at a frame that is not whole."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    mark, size, digest = _HEAD.unpack(head)
    # A damaged head may name any size: no more is asked for than there is.
    left = os.fstat(file.fileno()).st_size - file.tell()
    if mark != _MARK or size > left:
        return None
    payload = file.read(size)
    return payload if hashlib.sha256(payload).digest() == digest else None


def _holds_a_frame(file: BinaryIO, start: int) -> bool:
    """Whether a whole frame begins anywhere behind ``start``."""
    file.seek(start)
    rest, at = file.read(), 0
    while (at := rest.find(_MARK, at + 1)) > 0:
        file.seek(start + at)
        if _next_payload(file) is not None:
            return True
    return False


def _sync_folder(folder: Path) -> None:
    """Put a new file's name on the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
