"""Finds and loads the native libraries, one per device type, and remembers why one is missing.

A library registers kernels for ops that `_schema` has defined; nothing is looked up by symbol.
The versions are compared before the library is opened, because opening one that asks for symbols
this torch does not have can end the process.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rome_fast.ops import _cards

MINIMUM_TORCH = (2, 10)
LIBRARIES = {"cpu": "_C", "cuda": "_C_cuda"}
NOT_BUILT = {
    "cpu": "the native library is not built (needs a C++ compiler and, at build time, torch: "
    "pip install --no-build-isolation .)",
    "cuda": "the CUDA library is not built (needs nvcc and, at build time, torch: "
    "ROME_FAST_BUILD=cuda pip install --no-build-isolation .)",
}


@dataclass(frozen=True)
class NativeStatus:
    """Whether the library is loaded; `reason` says why not, in a form to show to a user."""

    loaded: bool
    reason: str = ""
    path: str = ""
    build_facts: dict[str, Any] = field(default_factory=dict)


@functools.lru_cache
def load(device_type: str = "cpu") -> NativeStatus:
    """Load the library for "cpu" or "cuda" on the first call; the same answer ever after."""
    path, facts = find_library(device_type), _build_facts()
    if path is None:
        return NativeStatus(False, _why_not_built(device_type, facts))
    if torch_version() < MINIMUM_TORCH:
        needed = ".".join(map(str, MINIMUM_TORCH))
        reason = f"torch {torch.__version__} is installed, the native library needs >= {needed}"
        return NativeStatus(False, reason, str(path), facts)
    if device_type == "cuda" and (reason := _why_no_cuda_here(facts)):
        return NativeStatus(False, reason, str(path), facts)
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return NativeStatus(False, f"{path.name} cannot be loaded: {error}", str(path), facts)
    return NativeStatus(True, "", str(path), facts)


def find_library(device_type: str = "cpu") -> Path | None:
    """The built library beside the package, or None."""
    package = Path(__file__).resolve().parent.parent
    stem = LIBRARIES[device_type]
    candidates = sorted(package.glob(f"{stem}.*so")) + sorted(package.glob(f"{stem}.*pyd"))
    return candidates[0] if candidates else None


def has(op: str, device_type: str) -> bool:
    """Whether a library that is loaded has a kernel for an op."""
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(f"rome_fast::{op}", device_type.upper())
    )


def torch_version() -> tuple[int, int]:
    """(major, minor) of the torch that is installed."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _why_not_built(device_type: str, facts: dict[str, Any]) -> str:
    why = facts.get("why_no_cuda") if device_type == "cuda" else None
    return NOT_BUILT[device_type] + (f"; this build left it out: {why}" if why else "")


def _why_no_cuda_here(facts: dict[str, Any]) -> str:
    """What is known before the library is opened; asking starts no CUDA."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if torch.cuda.device_count() == 0:
        return "torch finds no GPU here"
    return _cards.why_not(facts)


def _build_facts() -> dict[str, Any]:
    """What the pybind11 module says of the build; empty when it is missing."""
    try:
        return dict(importlib.import_module("rome_fast._facts").build_facts())
    except ImportError:
        return {}
