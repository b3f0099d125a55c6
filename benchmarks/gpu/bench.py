"""A model, its edit in two kinds of search, and requests to go on with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

import rome_fast
from benchmarks.edit.bench_edit import CONTEXTS, REQUEST
from benchmarks.edit.edit_order import distinct
from benchmarks.gpu.metric import well_conditioned
from benchmarks.gpu.models import built
from benchmarks.gpu.names import BY_DEFAULT
from benchmarks.gpu.roofline import matmul_precision
from benchmarks.gpu.run import MismatchError, Row, Run
from benchmarks.gpu.timer import figure
from rome_fast import EditRequest, ops
from rome_fast.bench.case import Case
from rome_fast.bench.own import factored
from rome_fast.bench.peers import Peer
from rome_fast.hparams import defaults_for
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.contexts import contexts_for
from rome_fast.prompt.encode import encode
from rome_fast.value import graph

# dtype, torch's precision of float32 products, cosine of dW and relative difference of the losses
# that pass. Below float32 the ways round differently, and Adam's first step is a sign.
PRECISIONS = {
    "bfloat16": (torch.bfloat16, "highest", 0.95, 2e-2),
    "tf32": (torch.float32, "high", 0.99, 5e-3),
    "float32": (torch.float32, "highest", 0.999, 5e-4),
}
# Put before prompts and subjects: no two neighbours in a sequence are of one length.
ASIDE = "As was said on the radio in the early hours of the day ,".split()
TITLES = "the old and well known".split()


class Bench:
    """A model on the device and the cases that are edited.

    Attributes:
        cases: by what a row's name says of the search. The first has no early stop.
        requests, lengthened: facts about distinct subjects, as they are and of many lengths.
    """

    def __init__(self, run: Run, name: str) -> None:
        begin = time.perf_counter()
        self.model, self.tok, layer = built(run, name)
        self.steps = run.pick(20, 3)
        # Miniatures write values that are as much smaller.
        settings = {"v_num_grad_steps": self.steps, "v_lr": run.pick(0.02, 1e-4)}
        hparams = rome_fast.RomeHparams((layer,), v_stop_loss=0.0, variant="original", **settings)
        spec = ModelSpec.of(self.model)
        moment = well_conditioned(run, spec.down_projection(layer).d_key).float()
        case = Case(self.model, self.tok, REQUEST, hparams, CONTEXTS, moment)
        default, _ = defaults_for(spec, layer)
        # As it is on a GPU; some processors search in bfloat16, and the whole model does not.
        default = default.replace(compute_dtype="model")
        contexts = tuple(contexts_for(self.model, self.tok, default))
        by_default = replace(case, hparams=default, context_templates=contexts)
        self.cases = {"": case, BY_DEFAULT: by_default}
        self.moment = factored(moment)
        self.backend = ops.resolve_backend("auto", run.device.type)
        facts = distinct(rome_fast.demo.load_facts(), run.pick(200, 6), seed=0)
        self.requests = [EditRequest(f.prompt, f.subject, f.target_new) for f in facts]
        self.lengthened = [lengthened(r, number) for number, r in enumerate(self.requests)]
        tokens = encode(self.tok, REQUEST, CONTEXTS, hparams.fact_token)
        self.facts: Row = {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "layer": layer,
            "d_key": len(moment),
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

    def agreement(self, own: Peer, other: Peer, search: str = "") -> dict[str, float]:
        """Of two ways to make the same edit; both are warm afterwards.

        By default a search ends when it has found its target, perhaps a step sooner in one of them.
        """
        one, two = (peer.edit(self.cases[search]) for peer in (own, other))
        if not search and not len(one.losses) == len(two.losses) == self.steps:
            raise MismatchError(f"{len(one.losses)} and {len(two.losses)} steps: not timed")
        a, b = one.dense.double().flatten(), two.dense.double().flatten()
        pairs = zip(one.losses, two.losses, strict=not search)
        apart = [abs((x - y) / x) for x, y in pairs]
        return {
            "cosine": float(a @ b / (a.norm() * b.norm())),
            "losses": figure(apart[0] if search else max(apart)),
            "steps": len(two.losses),
        }

    def edited(
        self, requests: Sequence[EditRequest], search: str = "", **order: Any
    ) -> tuple[float, list[Any]]:
        """(seconds, results) of edits that are undone afterwards; what is undone is not timed."""
        case = self.cases[search]
        hparams = case.hparams.replace(variant="both_keys")
        shared = {"second_moment": self.moment, "context_templates": case.context_templates}
        begin = time.perf_counter()
        with rome_fast.trial(
            self.model, self.tok, list(requests), hparams, progress=False, **shared, **order
        ) as results:
            seconds = time.perf_counter() - begin
        if not search and any(len(result.losses) != self.steps for result in results):
            raise MismatchError("a search stopped early: not timed")
        return seconds, results


def lengthened(request: EditRequest, number: int) -> EditRequest:
    """With words before its prompt and before its subject, as many as its number says."""
    aside, title = ASIDE[: 4 * number % (len(ASIDE) + 1)], TITLES[: number % (len(TITLES) + 1)]
    prompt = " ".join([*aside, request.prompt])
    return replace(request, prompt=prompt, subject=" ".join([*title, request.subject]))
