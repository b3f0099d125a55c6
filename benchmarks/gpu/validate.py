"""The tests of the CUDA kernels on the card itself, and each kernel under compute-sanitizer.

Every file runs in a process of its own: a kernel that reads where it must not ends every later
call of its process.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from torch.utils.cpp_extension import CUDA_HOME

from benchmarks.gpu.reports import outcomes
from benchmarks.gpu.run import FAILED, MEASURED, NOT_RUN, Run, SkipError
from benchmarks.gpu.timer import figure
from benchmarks.support.results import ROOT

ON_CARD = "tests/cuda/on_card.py"
SELECTION = f"{ON_CARD}::test_every_op_once"
# With torch's own kernels racecheck takes longer than there is.
OWN_KERNELS = ("--kernel-name", "kns=rome_fast")
# Without torch's cache every tensor is an allocation, whose bounds are then known. Racecheck looks
# at shared memory alone.
TOOLS: dict[str, dict[str, str]] = {
    "memcheck": {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    "racecheck": {},
}


def validate(run: Run) -> None:
    """tests/cuda, which run in the emulation where there is no card."""
    # In a dry run the emulation is left to the test suite itself.
    for file in [ON_CARD, *([] if run.small else kernel_tests())]:
        if not run.wants(file):
            continue
        if run.seconds_left <= 0:
            run.keep(file, NOT_RUN, why="the time of this part was over")
        else:
            state, facts = _pytest(run, [file], run.seconds_left)
            run.keep(file, state, **facts)


def kernel_tests() -> list[str]:
    """The files that call kernels by the fixture; others test the emulation."""
    found = sorted((ROOT / "tests" / "cuda").glob("test_*.py"))
    calling = [path for path in found if "emulated" in fixtures_of(path)]
    return [str(path.relative_to(ROOT)) for path in calling]


def fixtures_of(path: Path) -> set[str]:
    """What the tests of a file ask for."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {argument.arg for function in functions for argument in function.args.args}


def sanitize(run: Run) -> None:
    wanted = [tool for tool in TOOLS if run.wants(tool)]
    for number, tool in enumerate(wanted):
        run.attempt(tool, _sanitized, tool, run.seconds_left / len(wanted[number:]))


def _sanitized(run: Run, tool: str, seconds: float) -> dict[str, Any]:
    if run.device.type != "cuda":
        raise SkipError("compute-sanitizer needs a GPU")
    folders = os.environ.get("PATH", ""), str(Path(CUDA_HOME or "/usr/local/cuda") / "bin")
    sanitizer = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    if sanitizer is None:
        raise SkipError("compute-sanitizer is not installed")
    wrapped = [sanitizer, "--tool", tool, *OWN_KERNELS, "--error-exitcode", "86"]
    state, facts = _pytest(run, [SELECTION], seconds, wrapped, **TOOLS[tool])
    if state != MEASURED:
        raise RuntimeError(f"{facts}"[-500:])
    return facts


def _pytest(
    run: Run,
    arguments: list[str],
    seconds: float,
    wrapped: list[str] | None = None,
    **environment: str,
) -> tuple[str, dict[str, Any]]:
    """(state, what happened) of one run of pytest, which is ended after its seconds."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        reports = Path(folder) / "reports"
        quiet = ["-q", "-x", "--tb=short"] if wrapped else ["-q", "--tb=short"]
        plugins = ["-p", "benchmarks.gpu.reports", "-p", "no:cacheprovider"]
        command = [*(wrapped or []), sys.executable, "-m", "pytest", *quiet, *plugins, *arguments]
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        given = {
            **os.environ,
            **environment,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "ROME_FAST_REPORTS": str(reports),
            "ROME_FAST_TEST_DEVICE": run.device.type,
        }
        code, said = _ended(command, given, seconds)
        found = outcomes(reports)
    facts = {
        "seconds": figure(time.perf_counter() - begin),
        "exit": code,
        **Counter(report["outcome"] for report in found.values()),
        "failures": [r for r in found.values() if r["outcome"] in ("failed", "started")][:20],
        "skips": sorted({r["why"] for r in found.values() if r["outcome"] == "skipped"})[:20],
    }
    passed = code == 0 and not facts["failures"] and facts.get("passed")
    if not passed:
        print(said[-6000:])
        facts["why"] = said[-600:]
    return (MEASURED if passed else FAILED), facts


def _ended(command: list[str], environment: dict[str, str], seconds: float) -> tuple[int, str]:
    """(exit code, output); it is ended when its time is over."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        output.seek(0)
        return code, output.read()
