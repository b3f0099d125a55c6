"""The two implementations every op test runs on."""

import os
import shutil

import pytest
import torch
from torch.utils.cpp_extension import get_cxx_compiler

from rome_fast.ops import _native


@pytest.fixture(autouse=True)
def two_threads():
    """Kernels are tested on more than one thread; the rest of the suite runs on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def native_library() -> None:
    """Fail where the native library should be there and is not; skip where none was wanted."""
    if os.environ.get("ROME_FAST_BUILD") == "none":
        pytest.skip("ROME_FAST_BUILD=none: no native library to test")
    if shutil.which(get_cxx_compiler()) is None:
        pytest.skip("no C++ compiler here: no native library to test")
    assert _native.load().loaded, _native.load().reason


@pytest.fixture(params=["native", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "native":
        request.getfixturevalue("native_library")
    return request.param
