"""Every module can be imported where POSIX's own modules are not (Windows)."""

from __future__ import annotations

import subprocess
import sys

import pytest

HIDE_AND_IMPORT = """
import importlib, os, pkgutil, sys

# What other libraries import on this system is their affair.
import psutil, platformdirs, torch, typer, yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

for name in ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
for name in ("fork", "getloadavg", "O_DIRECTORY"):
    if hasattr(os, name):
        delattr(os, name)

import rome_fast

found = [m.name for m in pkgutil.walk_packages(rome_fast.__path__, "rome_fast.")]
wanted = [n for n in found if not n.endswith(("__main__", "._C", "._facts", "rome_fast_cuda"))]
for name in wanted:
    importlib.import_module(name)
from rome_fast.model import memory
memory._PROC = memory.Path("nowhere")
model, tok, facts = rome_fast.demo.load()
fact = facts[0]
request = rome_fast.EditRequest(fact.prompt, fact.subject, fact.target_new)
result = rome_fast.edit(model, tok, request, second_moment="identity")
result.revert()
print(len(wanted), result.success)
"""


@pytest.mark.exhaustive
def test_the_package_is_imported_without_platformdirs():
    code = "import sys; sys.modules['platformdirs'] = None; import rome_fast; print(rome_fast.edit)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.exhaustive
def test_modules_of_posix_are_not_needed():
    done = subprocess.run(
        [sys.executable, "-c", HIDE_AND_IMPORT],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    n_modules, success = done.stdout.split()[-2:]
    assert int(n_modules) > 150 and success == "True"
