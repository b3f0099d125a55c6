"""How the ways in which memory runs out are told from other errors."""

from __future__ import annotations

import torch

_MESSAGES = ("not enough memory", "can't allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch raises a type of its own on a GPU, none on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(message in text for message in _MESSAGES)
