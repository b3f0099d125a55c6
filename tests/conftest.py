"""Shared fixtures: an own cache for the run, and a miniature model that each test may ruin."""

from __future__ import annotations

import copy
import os
import shutil
import signal

import pytest
import torch
from covering import mark_repetitions
from helpers import CONTEXTS
from torch.utils.cpp_extension import get_cxx_compiler

from rome_fast import RomeHparams
from rome_fast.ops import _native

# Workers inherit the size of a terminal that is none, from the readline of the process that starts
# them, and the console of the command line would keep it.
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """On a GPU nothing is a repetition: the cases take milliseconds, and it is seldom at hand."""
    if os.environ.get("ROME_FAST_TEST_DEVICE") != "cuda":
        mark_repetitions(items)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or writes the user's cache; workers share one, so that they read text once."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    patch = pytest.MonkeyPatch()
    patch.setenv("ROME_FAST_CACHE", str(folder / "cache"))
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Miniature models are slower on two threads, and far slower on a busy machine.

    What the native kernels do on several threads is tested in tests/ops.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """Ctrl-C is heard, also where the run itself is a job of the background, which ignores it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="session")
def _pristine():
    # transformers is imported by the workers alone: the process that starts them does without.
    from tiny import tiny_gpt2, tiny_llama

    return {"gpt2": tiny_gpt2(), "llama": tiny_llama()}


@pytest.fixture(params=["gpt2", "llama"])
def tiny(request, _pristine):
    """(model, tok), once GPT-2 (Conv1D, no BOS) and once Llama (Linear, BOS)."""
    return copy.deepcopy(_pristine[request.param])


@pytest.fixture
def gpt2(_pristine):
    return copy.deepcopy(_pristine["gpt2"])


@pytest.fixture
def llama(_pristine):
    return copy.deepcopy(_pristine["llama"])


@pytest.fixture
def hparams():
    """An edit of layer 1 that succeeds on the miniature models in a second or two."""
    return RomeHparams(
        layers=[1], v_num_grad_steps=5, v_lr=0.8, v_weight_decay=1e-3, clamp_norm_factor=12
    )


@pytest.fixture
def settings(hparams):
    """Keyword arguments of edit() that need no sampling."""
    return {"hparams": hparams, "second_moment": "identity", "context_templates": CONTEXTS}


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
