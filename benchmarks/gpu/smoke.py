"""Whether everything works at all, in seconds: each op with each of its kernels, each an edit."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.roofline import random
from benchmarks.gpu.run import MismatchError, Row, Run, SkipError
from benchmarks.gpu.second_moment import kernel
from benchmarks.gpu.timer import figure, relative_error, require
from benchmarks.support.results import ROOT
from rome_fast import ops
from rome_fast.bench.own import RomeFast

sys.path.insert(0, str(ROOT / "tests" / "support"))
from cuda_calls import CALLS, KERNELS_OF_CALLS

WITHOUT_GRAPH = "without a CUDA graph"


def smoke(run: Run) -> None:
    """A row for each; one that fails hides no other."""
    warnings.simplefilter("ignore")
    for name, choice in KERNELS_OF_CALLS:
        run.attempt(f"{name}{choice and f', {choice}'}", _op, name, choice)
    for dtype in (torch.bfloat16, torch.float16):
        run.attempt(f"wgmma beside mma, {str(dtype).removeprefix('torch.')}", _sums, dtype)
    for name in MODELS:
        run.attempt(f"edit, {name}, native beside torch", _edit, name)
        run.attempt(f"edit, {name}, captured", _captured, name)


def _op(run: Run, name: str, choice: str) -> Row:
    """Beside the torch default on the CPU."""
    call = CALLS[name]
    with kernel(choice):
        found = call.run(call.on(run.device))
    wanted = call.run(call.on("cpu"), backend="torch")
    pairs = zip(found, wanted, strict=True)
    error = require(name, max(_apart(one.cpu(), two) for one, two in pairs), call.tolerance)
    return {"error": error, "backend": ops.resolve_backend("auto", run.device.type)}


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return 0.0 if torch.equal(found, wanted) else relative_error(found, wanted)


def _sums(run: Run, dtype: torch.dtype) -> Row:
    """Both beside float64, with more rows than either adds up in its registers."""
    if run.device.type == "cuda" and torch.cuda.get_device_capability()[0] != 9:
        raise SkipError("wgmma is Hopper's")
    n, d = run.pick(9000, 300), run.pick(1024, 64)
    keys = random(run, n, d, dtype=dtype, seed=1)
    wanted = (keys.double().T @ keys.double()).tril()
    errors = {}
    for choice in ("wgmma", "mma"):
        moment = torch.zeros(d, d, device=run.device)
        with kernel(choice):
            ops.second_moment_update_(moment, keys)
        errors[choice] = require(choice, relative_error(moment.tril(), wanted), 6e-5)
    return {"error": errors["wgmma"], "error_of_mma": errors["mma"]}


def _edit(run: Run, name: str) -> Row:
    """A miniature of the model."""
    bench = Bench(replace(run, small=True), name)
    with bench.as_("float32"):
        found = bench.agreement(RomeFast(), RomeFast(backend="torch"))
    require("1 - cosine of dW", 1 - found["cosine"], 1e-3)
    require("losses", found["losses"], 1e-3)
    return {**found, "backend": bench.backend}


def _captured(run: Run, name: str) -> Row:
    """Twice: the second one replays."""
    if run.device.type != "cuda":
        raise SkipError("a CPU captures no graph")
    bench = Bench(replace(run, small=True), name)
    with bench.as_("float32"):
        seconds, results = zip(*(bench.edited(bench.requests[:1]) for _ in range(2)), strict=True)
    one, two = (result[0] for result in results)
    for text in one.warnings:
        if WITHOUT_GRAPH in text:
            raise MismatchError(text)
    replayed, captured = (torch.tensor(result.losses) for result in (two, one))
    require("losses of the replay", relative_error(replayed, captured), 1e-5)
    return {"seconds": figure(seconds[0]), "seconds_of_replay": figure(seconds[1])}
