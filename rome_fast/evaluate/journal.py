"""Finished cases on disk, so that an evaluation that was cut off goes on where it stopped.

A JSONL file: the settings first, then what the unedited model says of each record, then one case a
line, in a sequence with the updates of its edits and, at some of them, the checkpoint after it, and
at its end what the model then says. A line is on the disk before the next is begun; one that was
torn by the end of the process is dropped.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.editlog.edits import fields_of, tensors_of, update_of
from rome_fast.errors import InvalidArgumentError
from rome_fast.evaluate.asking import Said
from rome_fast.evaluate.result import CaseResult, Checkpoint
from rome_fast.types import EditRequest, JointConstraint, Update

if TYPE_CHECKING:
    from rome_fast.moment.collect.ranks import Ranks

FORMAT = "rome_fast.evaluation-journal.3"


class Journal:
    """One rank's file; with several ranks each adds its number to the name.

    Args:
        path: of the file, or None to keep no journal.
        setting: must agree with that in the file.

    Attributes:
        path: of this rank's file, None where no journal is kept.
        cases: those that the file held, by their index.
        updates: of the same, in a sequence, one an edit; none where there was no edit.
        checkpoints: of a sequence, by the index of the case before them.
        said: what the model says of a record, by the stage ("before", "after") and its number.

    Raises:
        InvalidArgumentError: the file is of another evaluation (what differs is named), or damaged.
    """

    def __init__(self, path: str | Path | None, setting: Mapping[str, Any], ranks: Ranks) -> None:
        self.cases: dict[int, CaseResult] = {}
        self.updates: dict[int, list[Update]] = {}
        self.checkpoints: dict[int, Checkpoint] = {}
        self.said: dict[tuple[str, int], Said] = {}
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        if ranks.size > 1:
            self.path = self.path.with_name(f"{self.path.name}.rank{ranks.rank}of{ranks.size}")
        header = json.loads(json.dumps({"format": FORMAT, "setting": setting}))
        if not self.path.exists() or not self.path.stat().st_size:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append([header])
            return
        lines, end = self._whole_lines()
        self._check(lines[0] if lines else None, header)
        for line in lines[1:]:
            if "stage" in line:
                self.said[line["stage"], line["index"]] = Said.from_json(line["said"])
                continue
            updates, checkpoint = line.pop("updates", ()), line.pop("checkpoint", None)
            case = CaseResult.from_json(line)
            self.cases[case.index] = case
            self.updates[case.index] = [_decoded(update) for update in updates]
            if checkpoint is not None:
                self.checkpoints[case.index] = Checkpoint(**checkpoint)
        os.truncate(self.path, end)

    def add_said(self, stage: str, said: Mapping[int, Said]) -> None:
        """Put what the model says of some records on the disk."""
        self.said |= {(stage, number): each for number, each in said.items()}
        if self.path is not None:
            self._append(
                {"stage": stage, "index": number, "said": each.to_json()}
                for number, each in said.items()
            )

    def add(self, cases: Iterable[CaseResult]) -> None:
        """Put finished cases on the disk."""
        if self.path is not None:
            self._append(asdict(case) for case in cases)

    def add_next(
        self, case: CaseResult, updates: Sequence[Update], checkpoint: Checkpoint | None
    ) -> None:
        """Put the next case of a sequence on the disk."""
        if self.path is not None:
            made = zip(updates, case.requests, strict=True) if updates else ()
            more = {
                "updates": [_encoded(update, request) for update, request in made],
                "checkpoint": None if checkpoint is None else asdict(checkpoint),
            }
            self._append([{**asdict(case), **more}])

    def _append(self, lines: Iterable[Any]) -> None:
        assert self.path is not None
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def _whole_lines(self) -> tuple[list[Any], int]:
        """What the file holds up to a torn end, and the byte where that begins."""
        assert self.path is not None
        parsed, end = [], 0
        lines = self.path.read_bytes().split(b"\n")
        # What comes after the last line end is torn, or nothing.
        for number, line in enumerate(lines[:-1], 1):
            try:
                parsed.append(json.loads(line))
            except ValueError as error:
                if number < len(lines) - 1:
                    raise self._error(f"line {number} is damaged ({error})") from error
                break
            end += len(line) + 1
        return parsed, end

    def _check(self, found: Any, header: Mapping[str, Any]) -> None:
        if not isinstance(found, Mapping) or found.get("format") != FORMAT:
            raise self._error(f"it is not a journal of format {FORMAT!r}")
        told = list(_differences(found["setting"], header["setting"], ""))
        if told:
            raise self._error(f"it is of another evaluation: {'; '.join(told)}")

    def _error(self, reason: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"resume={str(self.path)!r} cannot be resumed: {reason}. Name another file, or delete "
            "this one to start again"
        )


def n_finished(path: Path) -> int:
    """How many cases a journal holds."""
    lines = path.read_bytes().split(b"\n")[1:-1]
    return sum(not line.startswith(b'{"stage"') for line in lines)


def _encoded(update: Update, request: EditRequest) -> dict[str, Any]:
    """Its tensors as text, to the bit, and what else it is."""
    from safetensors.torch import save

    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors_of(update).items()}
    text = base64.b64encode(save(tensors)).decode()
    return {**fields_of(update), "request": request.to_json(), "tensors": text}


def _decoded(fields: Mapping[str, Any]) -> Update:
    from safetensors.torch import load

    request = EditRequest(**fields["request"])
    update = update_of(fields, request, load(base64.b64decode(fields["tensors"])))
    assert not isinstance(update, JointConstraint)  # an evaluation solves none
    return update


def _differences(there: Any, here: Any, name: str) -> Iterator[str]:
    """Which settings differ, inner ones by their own names."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in {**there, **here}:
            inner = f"{name}.{key}" if name else str(key)
            yield from _differences(there.get(key), here.get(key), inner)
    elif there != here:
        yield f"{name} was {there!s:.60}, now it is {here!s:.60}"
