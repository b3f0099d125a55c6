"""The ops on the GPU itself, for tests that hold their tensors on the CPU.

Whole storages are copied there and back: strides, views of one buffer and the canaries around them
are the same on the card as here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map


class OnCard:
    """Like ``Emulated``, but with the library's own kernels on ``device``."""

    def __init__(self, device: str = "cuda") -> None:
        self._device = torch.device(device)

    def __getattr__(self, name: str) -> Op:
        return Op(getattr(torch.ops.rome_fast, name).default, self._device)

    def seed(self, seed: int) -> None:
        """Does nothing: the card chooses its own order."""


class Op:
    """One op, called with CPU tensors."""

    def __init__(self, op: Any, device: torch.device) -> None:
        self._op, self._device = op, device

    @property
    def default(self) -> Op:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        storages: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def there(x: Any) -> Any:
            return self._carried(x, storages) if isinstance(x, torch.Tensor) else x

        result = self._op(*tree_map(there, args), **tree_map(there, kwargs))
        for here, carried in storages.values():
            here.copy_(carried)  # waits, so that a kernel's error shows in its own test
        return tree_map(lambda x: x.cpu() if isinstance(x, torch.Tensor) else x, result)

    def _carried(
        self, x: torch.Tensor, storages: dict[int, tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in storages:
            here = torch.empty(0, dtype=torch.uint8).set_(storage)
            there = torch.empty_like(here, device=self._device)
            storages[storage.data_ptr()] = here, there.copy_(here)
        there = storages[storage.data_ptr()][1].untyped_storage()
        made = torch.empty(0, dtype=x.dtype, device=self._device)
        return made.set_(there, x.storage_offset(), x.size(), x.stride())
