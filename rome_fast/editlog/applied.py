"""A log applied to a model, and reverted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rome_fast.errors import NonFiniteError
from rome_fast.model.owner import check_free
from rome_fast.model.spec import DownProjection
from rome_fast.model.weights import check_weight
from rome_fast.model.wrappers import base_modules, unwrapped
from rome_fast.update.undo import WeightHistory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rome_fast.editlog.base import EditedWeight
    from rome_fast.editlog.records import LogRecords


@dataclass(frozen=True, eq=False)
class AppliedLog:
    """The edited weights of one model; each keeps a copy of its unedited bits."""

    histories: tuple[WeightHistory, ...]

    @classmethod
    def of(cls, log: LogRecords, model: PreTrainedModel) -> AppliedLog:
        """Write the log into the model (``EditLog.apply``)."""
        model = unwrapped(model)
        modules = dict(base_modules(model))
        projections = [
            DownProjection(name, modules[name], weight.layer, weight.weight_layout)
            for name, weight in _by_module(log)
            if name in modules  # the check of the base says what is missing
        ]
        for projection in projections:
            name = f"{projection.name}.weight"
            check_weight(name, projection.module, model)
            check_free(projection.weight, name)
        log.base.check(model)
        applied = cls(tuple(WeightHistory(p, backend="auto") for p in projections))
        try:
            for name, history in zip(log.base.edited, applied.histories, strict=True):
                history.replay(log.updates(name))
                history.close()
                if not history.weight.isfinite().all():
                    raise NonFiniteError(
                        f"{name} overflows {history.weight.dtype} with the edits of the log: load "
                        "the model in float32 or bfloat16"
                    )
        except BaseException:  # also Ctrl-C: a half-edited model would pass for an edited one
            for history in applied.histories:
                history.replay([])
            raise
        return applied

    def revert(self) -> None:
        """Put the weights back, bit for bit.

        Raises:
            RevertError: a weight was changed after the log was applied; nothing was written.
            SessionError: an open Session edits a weight; nothing was written.
        """
        for history in self.histories:
            check_free(history.weight, f"{history.projection.name}.weight")
            history.check_current(len(history))
        for history in self.histories:
            history.replay([])


def _by_module(log: LogRecords) -> list[tuple[str, EditedWeight]]:
    return [(name.removesuffix(".weight"), weight) for name, weight in log.base.edited.items()]
