"""What one edit of a Session has changed in the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.types import JointConstraint, Update


@dataclass(frozen=True, eq=False)
class Change:
    """What one edit has changed in the model.

    Attributes:
        update: what is in the model now and was not before.
        findings: remarks for the user.
        logged: what the log holds of it, where that is not the update.
        carries: numbers of edits of the subject, which this one speaks for.
        released: numbers of the edits that are not retained while this one holds.
        keys: [m, d_key], what later edits shall leave alone; None where nothing can move it.
        numbers: for the log.
    """

    update: Update
    findings: tuple[str, ...]
    released: tuple[int, ...] = ()
    keys: Tensor | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    logged: JointConstraint | None = None
    carries: tuple[int, ...] = ()
