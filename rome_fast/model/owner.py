"""Who edits a model: the gate that all who do share, and the weights that an open Session holds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch.utils.weak import WeakIdKeyDictionary

from rome_fast.errors import SessionError
from rome_fast.model.lock import Gate
from rome_fast.model.wrappers import unwrapped

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_taken: WeakIdKeyDictionary = WeakIdKeyDictionary()
_gates: WeakIdKeyDictionary = WeakIdKeyDictionary()
# Of one thread many times: a forgotten Session may be collected while it is held.
_lock = threading.RLock()


def check_free(weight: Tensor, name: str) -> None:
    """Raise SessionError if an open Session edits the weight."""
    if weight in _taken:
        raise SessionError(
            f"{name} is being edited by an open Session: edit through that, or close() it first"
        )


@contextmanager
def owned(weight: Tensor, name: str) -> Iterator[None]:
    """While open, the weight is taken. Raises SessionError if it is already."""
    with _lock:
        check_free(weight, name)
        _taken[weight] = True
    try:
        yield
    finally:
        _taken.pop(weight, None)


@contextmanager
def gated(model: PreTrainedModel) -> Iterator[Gate]:
    """While open, forwards of the model, or of what it wraps, pass the gate that is given."""
    plain = unwrapped(model)
    with _lock:
        gate: Gate = _gates.setdefault(plain, Gate())
        gate.n_users += 1
        gate.watch(model)
    try:
        yield gate
    finally:
        with _lock:
            gate.n_users -= 1
            if not gate.n_users:
                gate.remove()
                _gates.pop(plain, None)


@contextmanager
def edited(model: PreTrainedModel) -> Iterator[None]:
    """While open, no other thread edits the model, in whichever layer, or runs it.

    Raises:
        SessionError: this very thread is inside ``session.reading()``.
    """
    with gated(model) as gate, gate.editing():
        yield
