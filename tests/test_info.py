"""`python -m rome_fast.info` and info() say what runs and why."""

import json
import re
import subprocess
import sys

import pytest
import torch

from rome_fast import ops
from rome_fast.info import OPS, describe, info


def test_info_agrees_with_the_backend_that_runs():
    facts = info()
    for device in ("cpu", "cuda"):
        is_native = ops.resolve_backend("auto", device) == "native"
        states = {name: f"torch default ({device})" for name in OPS}
        if is_native:  # the step of the search has a kernel for CUDA alone
            without = () if device == "cuda" else ("value_step_",)
            states |= {name: f"native ({device})" for name in OPS if name not in without}
        assert facts["ops"][device] == states
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    json.dumps(facts)


def test_info_names_every_op():
    functions = {"is_torch_asked", "resolve_backend"}
    assert set(OPS) == set(ops.__all__) - functions


def test_description_gives_the_reason_when_there_is_no_library():
    facts = info()
    facts["native_library"] = {"loaded": False, "path": "", "why_not": "no compiler was found"}
    facts["build"] = {}
    text = describe(facts)
    assert "native library: not found" in text
    assert "not loaded: no compiler was found" in text


def test_description_of_the_cuda_library():
    facts = info()
    assert facts["torch_cuda"] == torch.version.cuda
    facts["cuda_library"] = {"loaded": False, "path": "x/_C_cuda.so", "why_not": "no such thing"}
    facts["build"] = {**facts["build"], "nvcc": "13.0", "cuda_archs": "8.0, 9.0a"}
    facts["torch_cuda"] = None
    facts["build"].setdefault("compiler", "g++")
    facts["build"].setdefault("torch", "2.10")
    facts["build"].setdefault("simd", "avx2")
    text = describe(facts)
    assert "CUDA library (experimental): x/_C_cuda.so\n  not loaded: no such thing" in text
    assert "built by nvcc 13.0 for 8.0, 9.0a (torch's CUDA: none)" in text


@pytest.mark.exhaustive
def test_info_runs_as_a_module():
    command = [sys.executable, "-m", "rome_fast.info"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    here = describe(info()).replace(f"threads: {torch.get_num_threads()}", "threads:")
    there = re.sub(r"threads: \d+", "threads:", process.stdout.strip())
    assert there == here
    assert f"torch {torch.__version__}" in process.stdout
