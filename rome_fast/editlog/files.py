"""Files of edit logs: safetensors with a header and a checksum.

For each edited weight the file holds "<weight>.u" [n, d_key] and "<weight>.v" [n, d_value], one row
per edit, and as metadata one JSON object: format, base, edits (with the number of their row),
taken_out, rejections, sha256. Edits that are solved as one have "<weight>.key", "<weight>.solved"
and "<weight>.residual" instead. An edit beside the weight has tensors of its own,
"<edit_id>.delta", "<edit_id>.own.0", ..., and its weight those of its statistics,
"<weight>.entry.moment", ...
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.atomic_files import write_whole
from rome_fast.beside.entry import Entry
from rome_fast.editlog.base import Base
from rome_fast.editlog.edits import LoggedEdit, Rejection
from rome_fast.editlog.journal import is_journal, read_log
from rome_fast.editlog.records import LogRecords, by_weight
from rome_fast.errors import EditLogError
from rome_fast.model.hashes import fingerprint
from rome_fast.types import JointConstraint, RankOneUpdate

if TYPE_CHECKING:
    from torch import Tensor

# The second has edits beside a weight, the third such that are solved as one: earlier readers know
# nothing of them.
_FORMATS = ("rome_fast.edit_log.1", "rome_fast.edit_log.2", "rome_fast.edit_log.3")
_NAME = "edit_log"


def write(log: LogRecords, path: Path) -> None:
    """Write the log, atomically; never over a journal, which may be an open Session's.

    Raises:
        EditLogError: the file is a journal.
    """
    from safetensors.torch import save_file

    if path.is_file() and is_journal(path):
        raise EditLogError(
            f"{str(path)!r} is a Session's journal, which a log would destroy: name another file"
        )
    tensors: dict[str, Tensor] = {}
    rows: dict[int, int] = {}
    beside = [edit for edit in log.edits if edit.form != "weight"]
    joint = [edit for edit in log.edits if isinstance(edit.update, JointConstraint)]
    alone = [edit for edit in log.edits if isinstance(edit.update, RankOneUpdate)]
    for edits in (group for kind in (alone, joint) for group in by_weight(kind).values()):
        rows.update({edit.edit_id: row for row, edit in enumerate(edits)})
        tensors |= _stacked(edits)
    for edit in beside:
        tensors |= {f"{edit.edit_id}.{n}": t.cpu().contiguous() for n, t in edit.tensors().items()}
    for name, entry in log.entries.items() if beside else ():
        tensors |= {f"{name}.entry.{n}": tensor for n, tensor in entry.tensors().items()}
    header = {
        "format": _FORMATS[2 if joint else bool(beside)],
        "base": log.base.to_json(),
        "edits": [{**edit.to_json(), "row": rows.get(edit.edit_id)} for edit in log.edits],
        "taken_out": sorted(log.taken_out),
        "rejections": [rejection.to_json() for rejection in log.rejections],
    }
    header["sha256"] = _checksum(header, tensors)
    metadata = {_NAME: json.dumps(header, ensure_ascii=False)}
    write_whole(path, lambda partial: save_file(tensors, partial, metadata=metadata))


def _stacked(edits: Sequence[LoggedEdit]) -> dict[str, Tensor]:
    """Tensors of edits of one weight, a row each."""
    parts = [edit.tensors() for edit in edits]
    return {
        f"{edits[0].weight_name}.{name}": torch.stack([part[name].cpu() for part in parts])
        for name in parts[0]
    }


def read(path: Path) -> LogRecords:
    """Read a log, or a journal.

    Raises:
        EditLogError: absent, of another kind, truncated or corrupt.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise EditLogError(f"there is no edit log {str(path)!r}")
    if is_journal(path):
        return read_log(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_NAME])
            if header["format"] not in _FORMATS:
                raise KeyError(header["format"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if _checksum(header, tensors) != header["sha256"]:
            raise EditLogError(f"the edit log {str(path)!r} is damaged: its checksum differs")
        return _log(header, tensors)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, EditLogError):
            raise
        raise EditLogError(
            f"{str(path)!r} is not an edit log of rome_fast, or it is truncated: {error}"
        ) from error


def _log(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LogRecords:
    log = LogRecords(Base.from_json(header["base"]))
    for fields in header["edits"]:
        log.edits.append(LoggedEdit.from_json(fields, _tensors_of(fields, tensors)))
    for name in log.base.edited:
        if f"{name}.entry.moment" in tensors:
            log.entries[name] = Entry(**_under(f"{name}.entry.", tensors))
    log.taken_out = set(header["taken_out"])
    log.rejections = [Rejection.from_json(fields) for fields in header["rejections"]]
    return log


def _tensors_of(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of one edit."""
    if fields["row"] is None:
        return _under(f"{fields['edit_id']}.", tensors)
    # Copies: a view of a row would keep the whole tensor in memory.
    names = ("key", "solved", "residual") if "lam" in fields else ("u", "v")
    return {x: tensors[f"{fields['weight']}.{x}"][fields["row"]].clone() for x in names}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors and of the rest of the header."""
    said = json.dumps({k: v for k, v in header.items() if k != "sha256"}, sort_keys=True)
    numbers = fingerprint(*(tensors[name] for name in sorted(tensors)))
    return hashlib.sha256(f"{said}{numbers}".encode()).hexdigest()
