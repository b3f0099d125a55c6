"""How much memory is free, and whether an error means that it ran out."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch

_MESSAGES = ("not enough memory", "can't allocate memory", "out of memory")
_PROC, _GROUP = Path("/proc"), Path("/sys/fs/cgroup")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch has an error type for that on a GPU, none on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(message in text for message in _MESSAGES)


def free_bytes(device: torch.device, wanted: int = 0) -> int | None:
    """Bytes that can still be allocated on a device; None where unknown (no CUDA, no Linux).

    Where that is less than ``wanted``, malloc first returns its unused memory to the system.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch has reserved but does not use is free as well.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or not (_PROC / "meminfo").exists():
        return None
    free = _free_of_machine()
    if free < wanted:
        with suppress(OSError, AttributeError):  # only glibc can
            ctypes.CDLL(None).malloc_trim(0)
        free = _free_of_machine()
    return free


def _free_of_machine() -> int:
    available = 1024 * int(_numbers(_PROC / "meminfo")["MemAvailable:"])
    return max(0, min(available, _free_of_process(), _free_of_group()))


def _free_of_process() -> int:
    """What `ulimit -v` leaves."""
    import resource  # not on Windows

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return limit - int((_PROC / "self/statm").read_text().split()[0]) * resource.getpagesize()


def _free_of_group() -> int:
    """What a container's limit leaves (cgroup v2); cached files can be evicted, so they count."""
    if not (_GROUP / "memory.max").exists():
        return sys.maxsize
    limit = (_GROUP / "memory.max").read_text().strip()
    if limit == "max":
        return sys.maxsize
    files = int(_numbers(_GROUP / "memory.stat")["file"])
    return int(limit) - int((_GROUP / "memory.current").read_text()) + files


def _numbers(file: Path) -> dict[str, str]:
    return dict(line.split()[:2] for line in file.read_text().splitlines())


def format_bytes(n_bytes: int) -> str:
    """A size in a readable unit: ``"3.1 GiB"``."""
    if n_bytes >= 2**30:
        return f"{n_bytes / 2**30:.1f} GiB"
    return f"{n_bytes / 2**20:.0f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 2**10:.0f} KiB"
