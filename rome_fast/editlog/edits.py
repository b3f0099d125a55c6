"""One edit, or one refusal, as a log has it. Plain data."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rome_fast.errors import EditRejectedError, RomeFastError
from rome_fast.types import (
    EditRequest,
    JointConstraint,
    LoggedUpdate,
    Offset,
    RankOneUpdate,
    Signature,
)

if TYPE_CHECKING:
    from torch import Tensor


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
