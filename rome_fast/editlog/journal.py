"""The file format of a Session's journal, and the log that is read from it.

The file is a line that names the format, then frames: a mark of 4 bytes, the payload's length (8
bytes, little endian), its SHA-256, and the payload, which is a safetensors file of its own:
tensors, and one JSON object as metadata. A last frame that was torn by the end of the process is
dropped; a broken frame with whole ones behind it is damage, and an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rome_fast.beside.entry import Entry
from rome_fast.editlog.base import Base
from rome_fast.editlog.edits import LoggedEdit, Rejection
from rome_fast.editlog.records import LogRecords
from rome_fast.editlog.solved import asked_anew
from rome_fast.errors import EditLogError, JournalError

if TYPE_CHECKING:
    from torch import Tensor

FIRST_LINE = b"rome_fast.journal.1\n"
_MARK = b"\xf5RF1"
_HEAD = struct.Struct("<4sQ32s")


@dataclass(frozen=True, eq=False)
class Record:
    """One entry of the journal; ``fields["kind"]`` says which.

    "session", the first one: settings, base and second moment, with the tensor "diagonal"; "edit":
    with the tensors of its update and, where they are retained, "keys"; "entry": what the offsets
    beside a weight are set with, before the first of them; "taken_out": the numbers of the edits
    that are taken "out", and of those that are put "back"; "asked_anew": what edits ask for from
    then on, by their numbers; "rejection"; "health".
    """

    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def __bytes__(self) -> bytes:
        from safetensors.torch import save

        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors.items()}
        payload = save(tensors, {"record": json.dumps(dict(self.fields), ensure_ascii=False)})
        return _HEAD.pack(_MARK, len(payload), hashlib.sha256(payload).digest()) + payload

    @classmethod
    def of(cls, payload: bytes) -> Record:
        """The record in a frame's payload."""
        from safetensors.torch import load

        size = int.from_bytes(payload[:8], "little")
        metadata = json.loads(payload[8 : 8 + size])["__metadata__"]
        return cls(json.loads(metadata["record"]), load(payload))


def is_journal(path: Path) -> bool:
    """Whether a file begins like a journal."""
    with path.open("rb") as file:
        return file.read(len(FIRST_LINE)) == FIRST_LINE


def read_log(path: Path) -> LogRecords:
    """The log in a journal, without the Session.

    Raises:
        EditLogError: it is damaged.
    """
    try:
        records, _, _ = read_records(path)
        return replay(path, records)
    except JournalError as error:
        raise EditLogError(str(error)) from error


def replay(path: Path, records: list[Record]) -> LogRecords:
    """Rebuild the log from the records of a journal.

    Raises:
        JournalError: they contradict each other.
    """
    log = LogRecords(Base.from_json(records[0].fields["base"]))
    for record in records[1:]:
        fields, kind = record.fields, record.fields["kind"]
        if kind == "edit":
            edit = LoggedEdit.from_json(fields["edit"], record.tensors)
            if edit.edit_id < log.next_id:
                raise JournalError(
                    f"journal {str(path)!r} is damaged: edit {edit.edit_id} comes after edit "
                    f"{log.next_id - 1}; restore the file from a copy"
                )
            log.edits.append(edit)
        elif kind == "entry":
            log.entries[fields["weight"]] = Entry(**record.tensors)
        elif kind == "taken_out":
            log.taken_out |= set(fields["out"])
            log.taken_out -= set(fields["back"])
        elif kind == "asked_anew":
            residuals = {int(number): tensor for number, tensor in record.tensors.items()}
            log.edits = asked_anew(log.edits, residuals)
        elif kind == "rejection":
            log.rejections.append(Rejection.from_json(fields["rejection"]))
    return log


def read_records(path: Path) -> tuple[list[Record], int, int]:
    """(records, where the whole ones end, how many bytes follow).

    Raises:
        JournalError: absent, of another kind, or damaged.
    """
    if not path.is_file():
        raise JournalError(f"there is no journal {str(path)!r}")
    records, size = [], path.stat().st_size
    with path.open("rb") as file:
        if file.readline() != FIRST_LINE:
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
    """The next frame's payload; None at the end, and at a frame that is not whole."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    mark, size, digest = _HEAD.unpack(head)
    # A damaged head may name any size: never read more than there is.
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
