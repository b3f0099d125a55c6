"""Edits of whole models: a warm one beside the whole-model loop, a sequence, windows of 16.

Every precision is compared with the loop in the same precision: first by what the edit is, then by
time, in turns. No search stops early.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

import rome_fast
from benchmarks.edit.bench_edit import CONTEXTS, REQUEST
from benchmarks.edit.edit_order import distinct
from benchmarks.gpu.metric import well_conditioned
from benchmarks.gpu.models import built
from benchmarks.gpu.names import EXACT, WHOLE
from benchmarks.gpu.roofline import matmul_precision
from benchmarks.gpu.run import MismatchError, Row, Run
from benchmarks.gpu.timer import beside, figure, require, spread
from rome_fast import ops
from rome_fast.bench.case import Case
from rome_fast.bench.own import RomeFast, factored
from rome_fast.bench.peers import Peer
from rome_fast.bench.whole_model import WholeModel
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.encode import encode
from rome_fast.value import graph

TORCH = "rome_fast, backend torch"
# dtype, torch's precision of float32 products, cosine of dW and relative difference of the losses
# that pass. Below float32 the ways round differently, and Adam's first step is a sign.
PRECISIONS = {
    "tf32": (torch.float32, "high", 0.99, 5e-3),
    "float32": (torch.float32, "highest", 0.999, 5e-4),
    "bfloat16": (torch.bfloat16, "highest", 0.95, 2e-2),
}


def edits(run: Run, name: str) -> None:
    """All of one model; what goals are about comes first, each kind with a share of the time."""
    warnings.simplefilter("ignore")
    bench = Bench(run, name)
    run.keep("model", **bench.facts)
    begin, seconds = time.monotonic(), run.seconds_left
    stages = (("warm edit", bench.warm, 0.45), ("windows of 16", bench.windows, 0.75))
    for title, function, end in (*stages, ("sequence", bench.sequence, 1.0)):
        for number, precision in enumerate(PRECISIONS):
            left = begin + end * seconds - time.monotonic()
            until = time.monotonic() + max(left, 0) / (len(PRECISIONS) - number)
            run.attempt(f"{title}, {precision}", function, precision, until)


class Bench:
    """A model, its edit and facts about distinct subjects to go on with."""

    def __init__(self, run: Run, name: str) -> None:
        begin = time.perf_counter()
        self.model, self.tok, layer = built(run, name)
        self.steps, self.window = run.pick(20, 3), run.pick(16, 2)
        # Miniatures write values that are as much smaller.
        settings = {"v_num_grad_steps": self.steps, "v_lr": run.pick(0.02, 1e-4)}
        self.hparams = rome_fast.RomeHparams(layers=(layer,), v_stop_loss=0.0, **settings)
        d_key = ModelSpec.of(self.model).down_projection(layer).d_key
        moment = well_conditioned(run, d_key).float()
        original = self.hparams.replace(variant="original")
        self.case = Case(self.model, self.tok, REQUEST, original, CONTEXTS, moment)
        self.moment = factored(moment)
        self.backend = ops.resolve_backend("auto", run.device.type)
        facts = distinct(rome_fast.demo.load_facts(), run.pick(200, 6), seed=0)
        self.requests = [rome_fast.EditRequest(f.prompt, f.subject, f.target_new) for f in facts]
        tokens = encode(self.tok, REQUEST, CONTEXTS, self.hparams.fact_token)
        self.facts: Row = {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "layer": layer,
            "d_key": d_key,
            "tokens": int(tokens.attention_mask.sum()),
            "steps": self.steps,
            "seconds_to_build": figure(time.perf_counter() - begin),
        }

    @contextmanager
    def as_(self, precision: str) -> Iterator[None]:
        """The model in a dtype, which it keeps: its weights are rounded for good."""
        dtype, matmul, _, _ = PRECISIONS[precision]
        if self.model.dtype != dtype:
            graph.forget(self.model)  # they read the weights where they were
            self.model.to(dtype)
        with matmul_precision(matmul):
            yield

    def warm(self, run: Run, precision: str, until: float) -> Row:
        """One edit, made before: medians, ratios of neighbouring runs, peak memory."""
        _, _, cosine, difference = PRECISIONS[precision]
        ways: dict[str, Peer] = {
            "own": RomeFast(),
            TORCH: RomeFast(backend="torch"),
            WHOLE: WholeModel(),
        }
        with self.as_(precision):
            found = {way: self._agreement(ways["own"], peer) for way, peer in ways.items()}
            for way, agreement in found.items():
                require(f"{way}: 1 - cosine of dW", 1 - agreement["cosine"], 1 - cosine)
                require(f"{way}: losses", agreement["losses"], difference)
            peak = peak_mib(run, lambda: ways["own"].edit(self.case))
            times = self._in_turns(ways, run.pick(9, 2), until)
        rivals = {way: {**beside(times["own"], times[way], "s"), **found[way]} for way in ways}
        del rivals["own"]
        facts = {"peak_mib": peak, "backend": self.backend}
        return {**spread(times["own"], "s"), "beside": rivals, **facts}

    def _agreement(self, own: Peer, other: Peer) -> dict[str, float]:
        """Of two ways to make the same edit; both are warm afterwards."""
        one, two = own.edit(self.case), other.edit(self.case)
        if not len(one.losses) == len(two.losses) == self.steps:
            raise MismatchError(f"{len(one.losses)} and {len(two.losses)} steps: not timed")
        a, b = one.dense.double().flatten(), two.dense.double().flatten()
        x, y = (torch.tensor(edit.losses, dtype=torch.float64) for edit in (one, two))
        return {
            "cosine": float(a @ b / (a.norm() * b.norm())),
            "losses": figure(float(((x - y) / x).abs().max())),
        }

    def _in_turns(self, ways: dict[str, Peer], rounds: int, until: float) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds):
            if number >= 3 and time.monotonic() > until:
                break
            for way, peer in ways.items():
                times[way].append(peer.edit(self.case).seconds["total"])
        return times

    def windows(self, run: Run, precision: str, until: float) -> Row:
        """Two windows of independent edits beside the same ones in exact order, in turns."""
        requests = self.requests[: 2 * self.window]
        together = {"order": "independent", "window": self.window}
        own, exact = [], []
        with self.as_(precision):
            for number in range(3):
                if number >= 1 and time.monotonic() > until:
                    break
                seconds, window = self._edited(requests, **together)
                own.append(seconds)
                seconds, alone = self._edited(requests)
                exact.append(seconds)
                # The first of either is searched on the same weights.
                pairs = zip(window[0].losses, alone[0].losses, strict=True)
                apart = max(abs(a - b) / abs(b) for a, b in pairs)
                require("losses of the first request", apart, PRECISIONS[precision][3])
        # The first round has warmed both up, where there was time for more.
        own, exact = (times[1:] or times for times in (own, exact))
        facts = {**spread(own, "s"), "beside": {EXACT: beside(own, exact, "s")}}
        rate = figure(len(requests) / facts["median_s"])
        done = {"edits": len(requests), "edits_per_s": rate, "backend": self.backend}
        return {**facts, **done, "error": figure(apart)}

    def sequence(self, run: Run, precision: str, until: float) -> Row:
        """Edits that stay, one after another: as many of 200 as end in time."""
        with self.as_(precision):
            self._edited(self.requests[:2])
            one = self._edited(self.requests[2:4])[0] / 2
            fitting = int((until - time.monotonic()) / one)
            n = max(4, min(len(self.requests), fitting))
            seconds, results = self._edited(self.requests[:n])
        # Steps that were no captured graph, or a search through the whole model, are told there.
        said = Counter(text.split(":")[0] for result in results for text in result.warnings)
        facts = {"seconds": figure(seconds), "edits_per_s": figure(n / seconds)}
        return {"edits": n, **facts, "backend": self.backend, "warnings": said}

    def _edited(self, requests: Sequence[Any], **order: Any) -> tuple[float, list[Any]]:
        """(seconds, results) of edits that are undone afterwards; what is undone is not timed."""
        shared = {"second_moment": self.moment, "context_templates": CONTEXTS, "progress": False}
        begin = time.perf_counter()
        with rome_fast.trial(
            self.model, self.tok, list(requests), self.hparams, **shared, **order
        ) as results:
            seconds = time.perf_counter() - begin
        if any(len(result.losses) != self.steps for result in results):
            raise MismatchError("a search stopped early: not timed")
        return seconds, results


def peak_mib(run: Run, function: Any) -> int | None:
    """Memory of a call beyond what was allocated before it; on a CPU it is not told."""
    if run.device.type != "cuda":
        function()
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20)
