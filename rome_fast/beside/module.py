"""What stands beside an MLP: offsets that fire for their subjects; the model's own tensors stay.

A module in the edited matrix' module, so that it moves and is copied with the model. What it
answers is added to what the matrix writes. A checkpoint of the model holds its tensors under names
that other programs report as unknown: they do not run it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rome_fast.beside.gate import GateRows, gate_rows
from rome_fast.beside.group import Subject, by_subject
from rome_fast.beside.rows import UnitRows, unit_rows

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.beside.entry import Entry
    from rome_fast.model.spec import DownProjection
    from rome_fast.model.units import HiddenUnits
    from rome_fast.types import Offset

NAME = "rome_fast_beside"
_PARTS = {
    "neuron": ("gate", "gate_bias", "up", "up_bias", "down"),
    "gate": ("whitener", "centres", "near", "apart", "down"),
}


class Beside(nn.Module):
    """The offsets of one layer.

    Attributes:
        offsets: those that are in it, in order.
    """

    def __init__(self, units: HiddenUnits, entry: Entry) -> None:
        super().__init__()
        self.units, self.entry = units, entry
        self.offsets: tuple[Offset, ...] = ()
        # Whose the rows are, by form.
        self._subjects: dict[str, list[Subject]] = {}
        self._handles: list[Any] = []
        # By thread: several may run the model at once.
        self._entered: dict[int, Tensor] = {}

    @classmethod
    def at(cls, projection: DownProjection) -> Beside | None:
        """The one that stands at a matrix, if there is one."""
        found = projection.module._modules.get(NAME)
        return found if isinstance(found, Beside) else None

    def set(self, offsets: Sequence[Offset]) -> None:
        """Make these the offsets; their rows depend on nothing else, and on their order.

        Raises:
            UnsupportedModelError: the MLP can have no units; everything is as before.
        """
        if tuple(offsets) != self.offsets:
            self._put(offsets)
        self._stand(bool(offsets))

    def _put(self, offsets: Sequence[Offset]) -> None:
        parts: dict[str, dict[str, Tensor | None]] = {}
        subjects = {form: by_subject(offsets, form) for form in _PARTS}
        if subjects["neuron"]:
            parts["neuron"] = vars(unit_rows(self.units, self.entry, subjects["neuron"]))
        if subjects["gate"]:
            parts["gate"] = vars(gate_rows(self.entry, subjects["gate"]))
        self.offsets, self._subjects = tuple(offsets), subjects
        weight = self.units.projection.weight
        for form, names in _PARTS.items():
            for name in names:
                value = parts.get(form, {}).get(name)
                if value is not None:
                    # A gate compares in float32; units are what the MLP's own are.
                    wide = torch.promote_types(weight.dtype, torch.float32)
                    dtype = weight.dtype if form == "neuron" else wide
                    value = value.to(weight.device, dtype)
                self.register_buffer(f"{form}_{name}", value)

    @contextmanager
    def holding(self, offsets: Sequence[Offset]) -> Iterator[None]:
        """While open, only these are in it; without any it stays where it is, and is silent."""
        before, subjects, tensors = self.offsets, self._subjects, dict(self._buffers)
        try:
            if offsets:
                self.set(offsets)
            else:
                self.offsets, self._subjects = (), {}
            yield
        finally:
            # As they were: computing the rows of a thousand subjects again takes a second.
            self.offsets, self._subjects = before, subjects
            self._buffers.update(tensors)
            self._stand(bool(before))

    @property
    def is_in_place(self) -> bool:
        """Whether it stands where it was put, or holds nothing."""
        return not self.offsets or Beside.at(self.units.projection) is self

    def rows(self, form: str) -> Any:
        """UnitRows or GateRows as the model runs them; None without such offsets."""
        parts = [self._buffers.get(f"{form}_{name}") for name in _PARTS[form]]
        if parts[0] is None:
            return None
        kind = UnitRows if form == "neuron" else GateRows
        return kind(*parts)  # type: ignore[arg-type]

    def answer(self, h: Tensor) -> Tensor:
        """What is added to the matrix' output, [..., d_value], for h [..., d_model]."""
        units, gate = self.rows("neuron"), self.rows("gate")
        parts = []
        if units is not None:
            parts.append(units.answer(self.units.activation, h.to(units.gate.dtype)).to(h.dtype))
        if gate is not None:
            parts.append(gate.answer(h.to(gate.apart.dtype)).to(h.dtype))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    @torch.no_grad()
    def shares(self, name: str, form: str, h: Tensor) -> Tensor:
        """How much of a subject's offset tokens with these h [n, d_model] get, [n]: 1 is all."""
        rows = self.rows(form)
        subjects = self._subjects[form]
        place = [subject.name for subject in subjects].index(name)
        if form == "gate":
            number, is_subject = rows.nearest(h.to(rows.apart))
            sizes = torch.tensor([len(subject.signatures) for subject in subjects])
            mine = torch.arange(len(sizes)).repeat_interleave(sizes).to(number.device) == place
            return (mine[number] & is_subject).double()
        values: Tensor = rows.activity(self.units.activation, h.to(rows.gate))[:, place]
        if rows.up is not None:
            return values.double()
        # A plain MLP's columns are not the offsets, but what makes them of its activity.
        return values.double() * float(
            rows.down[place].double().norm() / subjects[place].delta.double().norm()
        )

    def _stand(self, is_there: bool) -> None:
        """Be at the matrix, with hooks, or be gone without a trace."""
        module, entry = self.units.projection.module, self.units.gate.module
        if is_there and not self._handles:
            module.add_module(NAME, self)
            self._handles = [
                entry.register_forward_pre_hook(self.enter),
                module.register_forward_hook(self.leave),
            ]
            _forget_compiled_code()
        elif not is_there and self._handles:
            for handle in self._handles:
                handle.remove()
            self._handles = []
            del module._modules[NAME]
            _forget_compiled_code()

    def enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Before the MLP's first map: see h."""
        self._entered[_caller()] = args[0]

    def leave(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """After its last one: add the answer."""
        h = self._entered.pop(_caller())
        return output + self.answer(h) if self.offsets else output


def _caller() -> int:
    """Who runs the model: the thread; compiled code sees both ends at once, and is no thread's."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _forget_compiled_code() -> None:
    """torch.compile does not look for hooks that come or go after it has compiled."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
