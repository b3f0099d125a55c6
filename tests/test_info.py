"""`python -m rome_fast.info` and info() say what runs and why."""

import json
import re
import subprocess
import sys

import torch

from rome_fast import ops
from rome_fast.info import OPS, describe, info


def test_info_agrees_with_the_backend_that_runs():
    facts = info()
    state = "native (cpu)" if ops.resolve_backend("auto") == "native" else "torch default"
    assert facts["ops"] == dict.fromkeys(OPS, state)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    json.dumps(facts)


def test_info_names_every_op():
    defined = {name.removesuffix("_") for name in ops.__all__ if name.endswith("_")}
    assert {name.removesuffix("_") for name in OPS} == defined


def test_description_gives_the_reason_when_there_is_no_library():
    facts = info()
    facts["native_library"] = {"loaded": False, "path": "", "why_not": "no compiler was found"}
    facts["build"] = {}
    text = describe(facts)
    assert "native library: not found" in text
    assert "not loaded: no compiler was found" in text


def test_info_runs_as_a_module():
    command = [sys.executable, "-m", "rome_fast.info"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    here = describe(info()).replace(f"threads: {torch.get_num_threads()}", "threads:")
    there = re.sub(r"threads: \d+", "threads:", process.stdout.strip())
    assert there == here
    assert f"torch {torch.__version__}" in process.stdout
