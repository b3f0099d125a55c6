"""The processes that share one work, on torch.distributed; a single process is one rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from rome_fast.errors import InvalidArgumentError, RomeFastError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process' rank among ``size``; every method must be called by all of them."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Those of the default process group.

        Raises:
            InvalidArgumentError: there is none.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            raise InvalidArgumentError(
                "distributed=True needs a process group: run under torchrun and call "
                "torch.distributed.init_process_group first"
            )
        return cls(distributed.get_rank(), distributed.get_world_size())

    def add_up_(self, tensor: Tensor) -> None:
        """Put the sum over all ranks into every rank's tensor."""
        if self.size > 1:
            # NCCL reduces GPU tensors only.
            moved = tensor if tensor.device.type == "cuda" else tensor.to(_device())
            distributed.all_reduce(moved)
            tensor.copy_(moved)

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            distributed.barrier()

    def any(self, *flags: bool) -> list[bool]:
        """Which of the flags is set on at least one rank."""
        if self.size == 1:
            return list(flags)
        counts = torch.tensor(flags, dtype=torch.int32, device=_device())
        distributed.all_reduce(counts)
        return [bool(count) for count in counts.tolist()]

    def gather(self, items: list[Any]) -> list[Any]:
        """The items (any that pickle takes) of all ranks, on every rank."""
        if self.size == 1:
            return items
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def share(self, n: int, work: Callable[[Sequence[int]], Sequence[Any]]) -> list[Any]:
        """What ``work`` makes of the numbers below ``n``, in order, on every rank.

        Each rank does a part. What is made must not lie on a GPU.

        Raises:
            Exception: that of a rank whose part has failed, on all of them.
        """
        mine = range(n)[self.rank :: self.size]
        error, made = None, []
        try:
            made = list(zip(mine, work(mine) if mine else [], strict=True))
        except Exception as raised:  # else the other ranks would wait for ever
            error = raised
        failed = self.gather([] if error is None else [_told(error)])
        if error is not None:
            raise error
        if failed:
            raise failed[0]
        return [item for _, item in sorted(self.gather(made), key=itemgetter(0))]

    def all_equal(self, number: int) -> bool:
        """Whether every rank has the same number."""
        if self.size == 1:
            return True
        numbers = torch.zeros(self.size, dtype=torch.int64, device=_device())
        numbers[self.rank] = number
        distributed.all_reduce(numbers)
        return len(set(numbers.tolist())) == 1


def _told(error: Exception) -> Exception:
    """An error as other processes get it: those of other libraries may not be sent."""
    return error if isinstance(error, RomeFastError) else RomeFastError(repr(error))


def _device() -> torch.device:
    """Where small tensors must lie for the backend that is in use."""
    on_gpu = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


@contextmanager
def torchrun_group() -> Iterator[bool]:
    """Join the group of the torchrun that started this process; yields whether there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield False
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield True
    finally:
        distributed.destroy_process_group()
