"""What an edit log holds: edits, refusals, and which of the edits hold. Plain data."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rome_fast.editlog.base import Base
from rome_fast.errors import EditRejectedError, RomeFastError
from rome_fast.types import (
    EditRequest,
    JointConstraint,
    LoggedUpdate,
    Offset,
    RankOneUpdate,
    Signature,
)
from rome_fast.update.fold import Fold

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.beside.entry import Entry


@dataclass(frozen=True, eq=False)
class LoggedEdit:
    """One edit that was made.

    Attributes:
        edit_id: 1, 2, ... in the order of the edits.
        replaced: earlier edits of the same fact; they do not hold while this one does.
        released: earlier edits whose keys a Session does not retain while this one holds.
        carries: earlier edits of the subject, whose outputs shall be this one's while it holds.
        update: of the weight, alone or solved with the others; or an Offset beside it.
        numbers: what was measured when it was made; plain numbers, texts and lists.
        time: seconds since the epoch.
    """

    edit_id: int
    request: EditRequest
    weight_name: str
    update: LoggedUpdate
    replaced: tuple[int, ...] = ()
    released: tuple[int, ...] = ()
    carries: tuple[int, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    @property
    def form(self) -> str:
        """``"weight"``, ``"neuron"`` or ``"gate"``."""
        return self.update.form if isinstance(self.update, Offset) else "weight"

    def tensors(self) -> dict[str, Tensor]:
        """Those of its update."""
        return tensors_of(self.update)

    def to_json(self) -> dict[str, Any]:
        """All of it but the tensors."""
        return {
            "edit_id": self.edit_id,
            "request": self.request.to_json(),
            "weight": self.weight_name,
            **fields_of(self.update),
            "replaced": list(self.replaced),
            "released": list(self.released),
            **({"carries": list(self.carries)} if self.carries else {}),
            "numbers": dict(self.numbers),
            "time": self.time,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LoggedEdit:
        """The edit that gave ``to_json`` and ``tensors``."""
        request = EditRequest(**fields["request"])
        return cls(
            edit_id=fields["edit_id"],
            request=request,
            weight_name=fields["weight"],
            update=update_of(fields, request, tensors),
            replaced=tuple(fields["replaced"]),
            released=tuple(fields["released"]),
            carries=tuple(fields.get("carries", ())),
            numbers=fields["numbers"],
            time=fields["time"],
        )


def tensors_of(update: LoggedUpdate) -> dict[str, Tensor]:
    """What a file holds of an update, beside ``fields_of``."""
    if isinstance(update, RankOneUpdate):
        return {"u": update.u, "v": update.v}
    if isinstance(update, JointConstraint):
        return {"key": update.key, "solved": update.solved, "residual": update.residual}
    named = {"delta": update.delta}
    for i, signature in enumerate(update.names.values()):
        named |= {f"own.{i}": signature.own, f"apart.{i}": signature.apart}
    return named


def fields_of(update: LoggedUpdate) -> dict[str, Any]:
    """Plain data."""
    if isinstance(update, RankOneUpdate):
        return {"weight_layout": update.weight_layout}
    if isinstance(update, JointConstraint):
        return {"weight_layout": update.weight_layout, "lam": update.lam}
    return {"form": update.form, "names": list(update.names)}


def update_of(
    fields: Mapping[str, Any], request: EditRequest, tensors: Mapping[str, Tensor]
) -> LoggedUpdate:
    """The update that gave ``fields_of`` and ``tensors_of``."""
    if "lam" in fields:
        parts = tensors["key"], tensors["solved"], tensors["residual"]
        return JointConstraint(*parts, fields["lam"], fields["weight_layout"])
    if "form" not in fields:
        return RankOneUpdate(tensors["u"], tensors["v"], fields["weight_layout"])
    names = {
        name: Signature(tensors[f"own.{i}"], tensors[f"apart.{i}"])
        for i, name in enumerate(fields["names"])
    }
    return Offset(fields["form"], request, names, tensors["delta"])


@dataclass(frozen=True)
class Rejection:
    """A request that was refused; the model was left as it was.

    Attributes:
        numbers: the finite numbers of an EditRejectedError; empty for other errors.
    """

    request: EditRequest
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    @classmethod
    def of(cls, request: EditRequest, error: RomeFastError) -> Rejection:
        """From the error that refused the request."""
        decided = error.numbers if isinstance(error, EditRejectedError) else {}
        finite = {name: number for name, number in decided.items() if math.isfinite(number)}
        return cls(request, f"{type(error).__name__}: {error}", finite)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts."""
        return {**asdict(self), "request": self.request.to_json()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Rejection:
        """The rejection that gave ``to_json``."""
        return cls(**{**fields, "request": EditRequest(**fields["request"])})


@dataclass(eq=False)
class LogRecords:
    """The edits of a model, in order, and which of them hold.

    An edit holds unless it was taken out, or replaced by a later one that holds. Each takes about
    (d_key + d_value) * 4 bytes; an Offset, ((n_contexts + 1) * d_model + d_value) * 4.

    Attributes:
        base: the unedited model.
        edits: all that were made, in order.
        taken_out: numbers of those that were undone or reverted.
        rejections: requests that were refused.
        entries: by weight, the statistics that its Offsets are set with.
    """

    base: Base
    edits: list[LoggedEdit] = field(default_factory=list)
    taken_out: set[int] = field(default_factory=set)
    rejections: list[Rejection] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many edits hold."""
        return len(self.holding())

    @property
    def next_id(self) -> int:
        """The number that the next edit gets."""
        return self.edits[-1].edit_id + 1 if self.edits else 1

    def kept(self) -> list[LoggedEdit]:
        """The edits that were not taken out, replaced by a later one or not, in order."""
        return [edit for edit in self.edits if edit.edit_id not in self.taken_out]

    def holding(self) -> list[LoggedEdit]:
        """The edits that are in the model, in order."""
        kept = self.kept()
        replaced = {number for edit in kept for number in edit.replaced}
        return [edit for edit in kept if edit.edit_id not in replaced]

    def updates(self, weight_name: str) -> list[RankOneUpdate]:
        """The updates that are in one weight, in order."""
        return updates_of([e for e in self.holding() if e.weight_name == weight_name])

    def offsets(self, weight_name: str) -> list[Offset]:
        """The offsets that stand beside one weight, in order."""
        return offsets_of(edit for edit in self.holding() if edit.weight_name == weight_name)

    def same_fact(self, request: EditRequest) -> tuple[int, ...]:
        """Numbers of the edits of this subject and prompt that were not taken out."""
        return tuple(edit.edit_id for edit in self.kept() if edit.request.same_fact(request))


def updates_of(edits: Sequence[LoggedEdit], fold: Fold | None = None) -> list[RankOneUpdate]:
    """The updates of those that write into the weight, in order.

    Args:
        edits: all that hold: those that are solved as one are solved here.
        fold: where they are solved, which may have solved the first of them before.
    """
    solved = iter((fold or Fold()).solve(constraints_of(edits)))
    found = []
    for edit in edits:
        if isinstance(edit.update, RankOneUpdate):
            found.append(edit.update)
        elif isinstance(edit.update, JointConstraint):
            found.append(next(solved))
    return found


def constraints_of(edits: Sequence[LoggedEdit]) -> list[JointConstraint]:
    """What is solved as one: of facts of one subject, all with the output of the latest."""
    latest: dict[int, Tensor] = {}
    for edit in edits:
        if isinstance(edit.update, JointConstraint):
            latest |= dict.fromkeys((*edit.carries, edit.edit_id), edit.update.residual)
    return [
        edit.update
        if edit.update.residual is latest[edit.edit_id]
        else replace(edit.update, residual=latest[edit.edit_id])
        for edit in edits
        if isinstance(edit.update, JointConstraint)
    ]


def asked_anew(edits: Iterable[LoggedEdit], residuals: Mapping[int, Tensor]) -> list[LoggedEdit]:
    """The edits, of which those with these numbers ask for other outputs."""
    made = []
    for edit in edits:
        if edit.edit_id in residuals and isinstance(edit.update, JointConstraint):
            update = replace(edit.update, residual=residuals[edit.edit_id])
            edit = replace(edit, update=update)
        made.append(edit)
    return made


def offsets_of(edits: Iterable[LoggedEdit]) -> list[Offset]:
    """The offsets of those that stand beside it."""
    return [edit.update for edit in edits if isinstance(edit.update, Offset)]


def by_weight(edits: Sequence[LoggedEdit]) -> dict[str, list[LoggedEdit]]:
    """Group edits by weight."""
    groups: dict[str, list[LoggedEdit]] = {}
    for edit in edits:
        groups.setdefault(edit.weight_name, []).append(edit)
    return groups
