"""Who edits a model: the lock that all who do share, and the weights that an open Session holds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch.utils.weak import WeakIdKeyDictionary

from rome_fast.errors import SessionError
from rome_fast.model.lock import ModelLock
from rome_fast.model.wrappers import unwrapped

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_taken: WeakIdKeyDictionary = WeakIdKeyDictionary()
_locks: WeakIdKeyDictionary = WeakIdKeyDictionary()
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
def shared_lock(model: PreTrainedModel) -> Iterator[ModelLock]:
    """While open, forwards of the model, or of what it wraps, pass the lock that is given."""
    plain = unwrapped(model)
    with _lock:
        lock: ModelLock = _locks.setdefault(plain, ModelLock())
        lock.n_users += 1
        lock.watch(model)
    try:
        yield lock
    finally:
        with _lock:
            lock.n_users -= 1
            if not lock.n_users:
                lock.remove()
                _locks.pop(plain, None)


@contextmanager
def locked(model: PreTrainedModel) -> Iterator[None]:
    """While open, no other thread edits the model, in whichever layer, or runs it.

    Raises:
        SessionError: this very thread is inside ``session.reading()``.
    """
    with shared_lock(model) as lock, lock.editing():
        yield
