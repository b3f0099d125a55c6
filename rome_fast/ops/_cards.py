"""NVIDIA's cards and driver, asked by the driver's own library, which does not start CUDA."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

# Copies behind the back of the threads (cp.async), and bfloat16 in tensor cores.
OLDEST = (8, 0)


@dataclass(frozen=True)
class Card:
    """A card of this machine, such as ("NVIDIA H200", (9, 0))."""

    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"

    def is_served_by(self, archs: str) -> bool:
        """Whether a library for "8.0, 9.0a, 9.0+PTX" has code for it."""
        return any(self._runs(arch) for arch in archs.split(", "))

    def _runs(self, arch: str) -> bool:
        number = arch.removesuffix("+PTX").rstrip("af")
        built = tuple(int(part) for part in number.split("."))
        if arch.removesuffix("+PTX").endswith("a"):
            return self.capability == built
        # PTX is compiled on the card for what came later; code runs in its own generation.
        same = arch.endswith("+PTX") or self.capability[0] == built[0]
        return same and self.capability >= built


@dataclass(frozen=True)
class Machine:
    """What the driver says: the newest CUDA that it knows, and its cards."""

    cuda: tuple[int, int]
    cards: tuple[Card, ...]


@functools.lru_cache
def machine() -> Machine | None:
    """The cards of this machine, or None where the driver cannot be asked."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        _checked(nvml.nvmlInit_v2())
        return Machine(_cuda_of_driver(nvml), tuple(_cards(nvml)))
    except (OSError, AttributeError):
        return None


def why_not(build: dict[str, Any]) -> str:
    """What keeps the library from running on every card here, or "" (also where nothing is known).

    build: the facts of the build, with the keys "nvcc" and "cuda_archs".
    """
    found = machine()
    if found is None or "nvcc" not in build:
        return ""
    if found.cuda[0] < int(build["nvcc"].split(".")[0]):
        known = ".".join(map(str, found.cuda))
        return (
            f"the driver knows CUDA {known}, and the library is built with {build['nvcc']}: "
            "a newer driver is needed"
        )
    if not found.cards or any(card.is_served_by(build["cuda_archs"]) for card in found.cards):
        return ""
    best = max(found.cards, key=lambda card: card.capability)
    if best.capability < OLDEST:
        return f"the kernels need compute capability {OLDEST[0]}.{OLDEST[1]}, and here is {best}"
    return (
        f"the library is built for {build['cuda_archs']}, and not for {best}: build it again "
        "without TORCH_CUDA_ARCH_LIST"
    )


def _cuda_of_driver(nvml: Any) -> tuple[int, int]:
    version = ctypes.c_int()
    _checked(nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(version)))
    return version.value // 1000, version.value % 1000 // 10


def _cards(nvml: Any) -> list[Card]:
    count, cards = ctypes.c_uint(), []
    _checked(nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)))
    for index in range(count.value):
        handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
        major, minor = ctypes.c_int(), ctypes.c_int()
        _checked(nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)))
        _checked(nvml.nvmlDeviceGetName(handle, name, len(name)))
        numbers = ctypes.byref(major), ctypes.byref(minor)
        _checked(nvml.nvmlDeviceGetCudaComputeCapability(handle, *numbers))
        cards.append(Card(name.value.decode(), (major.value, minor.value)))
    return cards


def _checked(status: int) -> None:
    if status:
        raise OSError(f"NVML says {status}")
