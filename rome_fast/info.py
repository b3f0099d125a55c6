"""What is installed, which kernels run, and why native ones do not.

python -m rome_fast.info
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

import torch

from rome_fast.ops import _cards, _native, resolve_backend

OPS = (
    "second_moment_update_",
    "rank_one_update_",
    "rank_one_solve_apply_",
    "cholesky_update_",
    "value_loss",
    "value_step_",
)
PACKAGES = ("rome-fast", "torch", "transformers", "numpy", "safetensors")
ENVIRONMENT = {
    "ROME_FAST_BACKEND": "default backend: auto, native or torch",
    "ROME_FAST_BUILD": "what an installation compiles: auto, cpu, cuda or none",
    "ROME_FAST_CACHES": "a core's L1 and L2 in KiB that kernels are blocked for, as 32,1024",
    "ROME_FAST_CUDA_KERNEL": "CUDA kernels to use: naive, or mma or wgmma for second moments",
    "ROME_FAST_SIMD": "highest instruction set to use: avx512_bf16, avx512, avx2 or baseline",
}


def info() -> dict[str, Any]:
    """Versions, the state of every op, the native library and the environment.

    Loads the native library; never starts CUDA and never imports transformers.
    """
    native = _native.load()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "ops": {
            device: {name: _runs_on(device, name) for name in OPS} for device in _native.LIBRARIES
        },
        "native_library": _state_of("cpu"),
        "cuda_library": _state_of("cuda"),
        "torch_cuda": torch.version.cuda,
        "gpus": [str(card) for card in found.cards] if (found := _cards.machine()) else [],
        "build": native.build_facts,
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
    }


def describe(facts: dict[str, Any]) -> str:
    """The facts of info() as lines of text."""
    native, build = facts["native_library"], facts["build"]
    versions = ", ".join(f"{name} {v or 'missing'}" for name, v in facts["versions"].items())
    lines = [
        f"rome_fast on Python {facts['python']}, {facts['platform']}",
        f"versions: {versions}",
        f"threads: {facts['threads']}",
        "ops:",
        *(f"  {name}: {'; '.join(states)}" for name, *states in _by_op(facts["ops"])),
        *_library_lines("native library", native),
    ]
    if build:
        lines.append(
            f"  built by {build['compiler']} for torch {build['torch']} "
            f"(running with {torch.__version__}); SIMD in use: {build['simd']}"
        )
    lines += _library_lines("CUDA library (experimental)", facts["cuda_library"])
    if "nvcc" in build and facts["cuda_library"]["path"]:
        lines.append(
            f"  built by nvcc {build['nvcc']} for {build['cuda_archs']} "
            f"(torch's CUDA: {facts['torch_cuda'] or 'none'})"
        )
    lines.append(f"GPUs: {', '.join(facts['gpus']) or 'none (no driver of NVIDIA, or no card)'}")
    lines.append("environment:")
    for name, value in facts["environment"].items():
        lines.append(f"  {name}={value or '(not set)'}: {ENVIRONMENT[name]}")
    return "\n".join(lines)


def main() -> None:
    """Print what info() knows."""
    sys.stdout.write(describe(info()) + "\n")


def _runs_on(device_type: str, op: str) -> str:
    """What an op is on tensors of a device."""
    is_native = resolve_backend("auto", device_type) == "native" and _native.has(op, device_type)
    return f"{'native' if is_native else 'torch default'} ({device_type})"


def _state_of(device_type: str) -> dict[str, Any]:
    status = _native.load(device_type)
    return {"loaded": status.loaded, "path": status.path, "why_not": status.reason}


def _by_op(states: dict[str, dict[str, str]]) -> list[tuple[str, ...]]:
    return [(name, *(of_device[name] for of_device in states.values())) for name in OPS]


def _library_lines(title: str, library: dict[str, Any]) -> list[str]:
    lines = [f"{title}: {library['path'] or 'not found'}"]
    if not library["loaded"]:
        lines.append(f"  not loaded: {library['why_not']}")
    return lines


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
