"""What is installed, which kernels run, and why the native ones do not if they do not.

python -m rome_fast.info
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

import torch

from rome_fast.ops import _native, resolve_backend

OPS = ("second_moment_update_", "rank_one_update_", "rank_one_solve_apply_", "cholesky_update_")
PACKAGES = ("rome-fast", "torch", "transformers", "numpy", "safetensors")
ENVIRONMENT = {
    "ROME_FAST_BACKEND": "default backend: auto, native or torch",
    "ROME_FAST_BUILD": "what an installation compiles: auto, cpu or none",
    "ROME_FAST_SIMD": "highest instruction set to use: avx512, avx2 or baseline",
}


def info() -> dict[str, Any]:
    """Versions, the state of every op, the native library and the environment.

    Loads the native library; never starts CUDA and never imports transformers.
    """
    native = _native.load()
    runs = "native (cpu)" if resolve_backend("auto") == "native" else "torch default"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "ops": dict.fromkeys(OPS, runs),
        "native_library": {
            "loaded": native.loaded,
            "path": native.path,
            "why_not": native.reason,
        },
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
        *(f"  {name}: {state}" for name, state in facts["ops"].items()),
        f"native library: {native['path'] or 'not found'}",
    ]
    if not native["loaded"]:
        lines.append(f"  not loaded: {native['why_not']}")
    if build:
        lines.append(
            f"  built by {build['compiler']} for torch {build['torch']} "
            f"(running with {torch.__version__}); SIMD in use: {build['simd']}"
        )
    lines.append("environment:")
    for name, value in facts["environment"].items():
        lines.append(f"  {name}={value or '(not set)'}: {ENVIRONMENT[name]}")
    return "\n".join(lines)


def main() -> None:
    """Print what info() knows."""
    sys.stdout.write(describe(info()) + "\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
