"""Float16 is very slow on a CPU: such a model is computed in float32, and kept in float16.

float32 holds the same numbers, so nothing is lost on the way there; hashes, edit logs and saved
folders are those of the checkpoint's own dtype, whichever machine made them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor, nn

_MARK = "_rome_fast_stored_dtype"


def stored_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which a parameter is kept: its own, unless ``widen_model`` has changed it."""
    kept: torch.dtype = getattr(tensor, _MARK, tensor.dtype)
    return kept


def as_stored(tensor: Tensor) -> Tensor:
    """A parameter as it is kept."""
    return tensor.detach().to(stored_dtype(tensor))


def widen_model(model: nn.Module) -> None:
    """Make what is float16 float32, in place, and remember what that was."""
    for _, tensor in _tensors(model):
        if tensor.dtype == torch.float16:
            tensor.data = tensor.data.float()
            setattr(tensor, _MARK, torch.float16)


@torch.no_grad()
def narrow_model(model: nn.Module) -> None:
    """Undo ``widen_model``, in place, rounding what has been edited since.

    Raises:
        NonFiniteError: a number is too large for the dtype it is kept in; the model stays wide.
    """
    for name, tensor in _tensors(model):
        if tensor.isfinite().all() and not as_stored(tensor).isfinite().all():
            dtype = str(stored_dtype(tensor)).removeprefix("torch.")
            raise NonFiniteError(f"{name} overflows {dtype}, in which the model is kept")
    for _, tensor in _tensors(model):
        tensor.data = as_stored(tensor)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())
