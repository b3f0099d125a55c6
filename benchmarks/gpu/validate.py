"""The tests of the CUDA kernels on the card itself, and a few of them under compute-sanitizer.

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

from benchmarks.gpu.reports import outcomes
from benchmarks.gpu.run import FAILED, MEASURED, NOT_RUN, Run, SkipError
from benchmarks.gpu.timer import figure
from benchmarks.support.results import ROOT

ON_CARD = "tests/cuda/on_card.py"
SELECTION = f"{ON_CARD}::test_every_op_once"
TOOLS = ("memcheck", "racecheck")


def validate(run: Run) -> None:
    """tests/cuda, which run in the emulation where there is no card."""
    # In a dry run the emulation is left to the test suite itself.
    for file in [ON_CARD, *([] if run.small else kernel_tests())]:
        if run.seconds_left <= 0:
            run.keep(file, NOT_RUN, why="the time of this part was over")
        else:
            state, facts = _pytest(run, [file])
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
    for tool in TOOLS:
        run.attempt(tool, _sanitized, tool)


def _sanitized(run: Run, tool: str) -> dict[str, Any]:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        raise SkipError("compute-sanitizer is not installed")
    if run.device.type != "cuda":
        raise SkipError("compute-sanitizer needs a GPU")
    wrapped = [sanitizer, "--tool", tool, "--error-exitcode", "86"]
    # Without torch's cache every tensor is an allocation, whose bounds are then known.
    state, facts = _pytest(run, [SELECTION], wrapped, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    if state != MEASURED:
        raise RuntimeError(f"{facts}"[-500:])
    return facts


def _pytest(
    run: Run, arguments: list[str], wrapped: list[str] | None = None, **environment: str
) -> tuple[str, dict[str, Any]]:
    """(state, what happened) of one run of pytest, which ends with the time of the part."""
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
        code, said = _ended(command, given, run.seconds_left)
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
