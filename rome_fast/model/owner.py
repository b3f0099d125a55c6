"""Who may edit a model: the lock that its editors share, and the weights that Sessions hold."""

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
# Re-entrant: a forgotten Session may be garbage-collected by a thread that holds it.
_lock = threading.RLock()


def check_free(weight: Tensor, name: str) -> None:
    """Raise SessionError if an open Session edits the weight."""
    if weight in _taken:
        raise SessionError(
            f"{name} is being edited by an open Session: edit through that, or close() it first"
        )


@contextmanager
def owned(weight: Tensor, name: str) -> Iterator[None]:
    """While open, the weight counts as taken. Raises SessionError if it already does."""
    with _lock:
        check_free(weight, name)
        _taken[weight] = True
    try:
        yield
    finally:
        _taken.pop(weight, None)


@contextmanager
def shared_lock(model: PreTrainedModel) -> Iterator[ModelLock]:
    """Yield the model's lock; while open, forwards of the model, wrapped or plain, take it."""
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
    """While open, no other thread edits any layer of the model, or runs it.

    Raises:
        SessionError: this very thread is inside ``session.reading()``.
    """
    with shared_lock(model) as lock, lock.editing():
        yield
