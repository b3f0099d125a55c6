"""Which weights are in the hands of an open Session; nothing else may edit them meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch.utils.weak import WeakIdKeyDictionary

from rome_fast.errors import SessionError

if TYPE_CHECKING:
    from torch import Tensor

_taken: WeakIdKeyDictionary = WeakIdKeyDictionary()


def check_free(weight: Tensor, name: str) -> None:
    """Raise SessionError if an open Session edits the weight."""
    if weight in _taken:
        raise SessionError(
            f"{name} is being edited by an open Session: edit through that, or close() it first"
        )


@contextmanager
def owned(weight: Tensor, name: str) -> Iterator[None]:
    """While open, the weight is taken. Raises SessionError if it is already."""
    check_free(weight, name)
    _taken[weight] = True
    try:
        yield
    finally:
        _taken.pop(weight, None)
