"""The CUDA kernels on the host, as ops of their own for tensors of the CPU (support/cuda_on_host).

ROME_FAST_TEST_DEVICE=cuda runs the same tests on a GPU, with the library that is installed there.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

import pytest
import torch
from carried import OnCard
from host_build import build, sources
from torch.utils.cpp_extension import get_cxx_compiler

from rome_fast import ops
from rome_fast.info import OPS


class Emulated:
    """The ops by name, as the dispatcher calls them."""

    def __init__(self, library: Path) -> None:
        for name in OPS:
            schema = str(getattr(torch.ops.rome_fast, name).default._schema)
            arguments = schema.removeprefix(f"rome_fast::{name}")
            torch.library.define(f"rome_fast_emulated::{name}", arguments)
        torch.ops.load_library(str(library))
        self._seed = ctypes.CDLL(str(library)).rome_fast_emulated_seed

    def __getattr__(self, name):
        return getattr(torch.ops.rome_fast_emulated, name)

    def seed(self, seed: int) -> None:
        """Another order of blocks and threads; 0 for their own."""
        self._seed(ctypes.c_uint64(seed))


@pytest.fixture(scope="session")
def compiler():
    if shutil.which(get_cxx_compiler()) is None:
        pytest.skip("no C++ compiler here: the CUDA kernels cannot be emulated")


@pytest.fixture(scope="session")
def _emulated(request):
    if os.environ.get("ROME_FAST_TEST_DEVICE") == "cuda":
        ops.resolve_backend("native", "cuda")  # it is loaded, or the reason why not is raised
        return OnCard()
    request.getfixturevalue("compiler")
    return Emulated(build(sources(), "rome_fast_emulated"))


@pytest.fixture(params=[0, 1], ids=["in order", "shuffled"])
def emulated(_emulated, request):
    """The ops, with threads and blocks in order and in another one."""
    _emulated.seed(request.param)
    yield _emulated
    _emulated.seed(0)
