"""A log applied to a model, and reverted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rome_fast.beside.module import Beside
from rome_fast.errors import NonFiniteError, RevertError
from rome_fast.model.open_model import open_model
from rome_fast.model.owner import check_free
from rome_fast.model.spec import DownProjection
from rome_fast.model.units import HiddenUnits
from rome_fast.model.weights import check_weight
from rome_fast.model.wrappers import base_modules, unwrapped
from rome_fast.update.undo import WeightHistory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rome_fast.editlog.base import EditedWeight
    from rome_fast.editlog.records import LogRecords


@dataclass(frozen=True, eq=False)
class AppliedLog:
    """The edited weights of one model; each keeps a copy of its unedited bits.

    Attributes:
        besides: what stands beside them.
    """

    histories: tuple[WeightHistory, ...]
    besides: tuple[Beside, ...]

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
        applied = cls(
            tuple(WeightHistory(p, backend="auto") for p in projections),
            _besides(log, model, projections),
        )
        try:
            for beside in applied.besides:
                beside.set(log.offsets(f"{beside.units.projection.name}.weight"))
            for name, history in zip(log.base.edited, applied.histories, strict=True):
                history.replay(log.updates(name))
                history.close()
                if not history.weight.isfinite().all():
                    raise NonFiniteError(
                        f"{name} overflows {history.weight.dtype} with the edits of the log: load "
                        "the model in float32 or bfloat16"
                    )
        except BaseException:  # also Ctrl-C: a half-edited model would pass for an edited one
            applied._put_back()
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
        for beside in self.besides:
            if not beside.is_in_place:
                name = beside.units.projection.name
                raise RevertError(f"what stood beside {name}.weight was taken away after the log")
        self._put_back()

    def _put_back(self) -> None:
        for history in self.histories:
            history.replay([])
        for beside in self.besides:
            beside.set([])


def _besides(
    log: LogRecords, model: PreTrainedModel, projections: Sequence[DownProjection]
) -> tuple[Beside, ...]:
    """One for each weight that offsets stand beside, still without any.

    Raises:
        UnsupportedModelError: the family's MLP can have none.
    """
    found = []
    with open_model(model) as spec:
        for projection in projections:
            name = f"{projection.name}.weight"
            if log.offsets(name):
                found.append(Beside(HiddenUnits.of(spec, projection), log.entries[name]))
    return tuple(found)


def _by_module(log: LogRecords) -> list[tuple[str, EditedWeight]]:
    return [(name.removesuffix(".weight"), weight) for name, weight in log.base.edited.items()]
