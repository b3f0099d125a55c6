"""A log written into a model, and taken out of it again."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rome_fast.errors import RomeFastError
from rome_fast.models import DownProjection
from rome_fast.owner import check_free
from rome_fast.undo import WeightHistory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rome_fast.editlog.log import EditLog


@dataclass(frozen=True, eq=False)
class AppliedLog:
    """The edited weights of one model; each keeps a copy of what it was."""

    histories: tuple[WeightHistory, ...]

    @classmethod
    def of(cls, log: EditLog, model: PreTrainedModel) -> AppliedLog:
        """Write the log into the model (``EditLog.apply``)."""
        for name in log.base.edited:
            with suppress(AttributeError):  # the check below says what is missing
                check_free(model.get_parameter(name), name)
        log.base.check(model)
        applied = cls(
            tuple(
                WeightHistory(_projection(model, name, log), backend="auto")
                for name in log.base.edited
            )
        )
        try:
            for name, history in zip(log.base.edited, applied.histories, strict=True):
                for update in log.updates(name):
                    history.add(update)
                history.drop_sum()
        except RomeFastError:
            for history in applied.histories:
                history.rewind(0)
            raise
        return applied

    def revert(self) -> None:
        """Put the weights back, bit for bit.

        Raises:
            RevertError: a weight was changed after the log was applied; nothing was written.
        """
        for history in self.histories:
            history.check_current(len(history))
        for history in self.histories:
            history.rewind(0)


def _projection(model: PreTrainedModel, weight_name: str, log: EditLog) -> DownProjection:
    name = weight_name.removesuffix(".weight")
    weight = log.base.edited[weight_name]
    return DownProjection(name, model.get_submodule(name), weight.layer, weight.weight_layout)
