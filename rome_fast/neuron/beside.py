"""Units beside an MLP: what they answer is added to its output, nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.model.units import HiddenUnits
    from rome_fast.neuron.rows import UnitRows


@contextmanager
def beside(units: HiddenUnits, rows: UnitRows) -> Iterator[None]:
    """While open, the MLP has these units too; one thin product each way."""
    weight = units.projection.weight
    mine = rows.to(weight.device, weight.dtype)
    entered: list[Tensor] = []

    def enter(module: Any, args: tuple[Tensor, ...]) -> None:
        entered[:] = [args[0]]

    def leave(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + mine.answer(units, entered.pop())

    handles = [
        units.gate.module.register_forward_pre_hook(enter),
        units.projection.module.register_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
