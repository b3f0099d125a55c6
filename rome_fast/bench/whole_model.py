"""The slow and obvious way to make the same edit, as a baseline.

Every step of the search runs the whole, unmodified model over all rows and all positions, with
logits everywhere, as the reference implementations do; the keys take a forward of their own. The
loss and the update are the library's: what differs is only what is computed for them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from rome_fast import ops
from rome_fast.bench.case import GIVEN
from rome_fast.bench.own import factored
from rome_fast.bench.peers import PeerEdit
from rome_fast.bench.setting import commit
from rome_fast.model.intercept import hooked
from rome_fast.model.open_model import frozen
from rome_fast.model.precision import widen
from rome_fast.model.spec import DownProjection, ModelSpec, input_device
from rome_fast.prompt.encode import encode
from rome_fast.timings import Timings
from rome_fast.update.solve import apply_update_, build_constraint
from rome_fast.update.undo import WeightHistory
from rome_fast.value.batch import EditBatch
from rome_fast.value.first_pass import FirstPass
from rome_fast.value.key import Keys, mean_keys
from rome_fast.value.objective import Objective
from rome_fast.value.optimize import offsets_for

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from rome_fast.bench.case import Case
    from rome_fast.hparams import RomeHparams


class WholeModel:
    """A peer that makes the library's edit without any of its shortcuts."""

    name = "whole model"
    c_modes: tuple[str, ...] = (GIVEN,)

    def __init__(self) -> None:
        self.commit = commit() or ""

    def edit(self, case: Case) -> PeerEdit:
        """The update is solved for and written to a copy of the matrix."""
        model, hparams, moment = case.model, case.hparams, case.second_moment
        moment_ready = None if moment is None else factored(moment)
        timings = Timings()
        spec = ModelSpec.of(model)
        projection = spec.down_projection(hparams.layer)
        tokens = encode(case.tok, case.request, case.context_templates, hparams.fact_token)
        batch = EditBatch.of([tokens])
        timings.lap("prepare")
        with torch.inference_mode(False), frozen(spec):
            run = _whole_forward(model, batch)
            keys = _keys(run, projection, batch)
            timings.lap("key")
            delta, losses = _search(run, projection, batch, keys.value_init, hparams)
            timings.lap("value")
        constraint = build_constraint(hparams.variant, keys, delta)
        backend = ops.resolve_backend("auto", projection.weight.device.type)
        spare = dataclasses.replace(projection, module=copy.deepcopy(projection.module))
        update = apply_update_(WeightHistory(spare, backend), constraint, moment_ready)
        timings.lap("update")
        total = sum(timings.seconds.values())
        return PeerEdit(update.dense(), losses, {**timings.seconds, "total": total})


def _whole_forward(model: PreTrainedModel, batch: EditBatch) -> Callable[[], Tensor]:
    """A function that returns the logits of all rows at all positions, [n, t, vocabulary]."""
    device = input_device(model)
    ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
    return lambda: model(input_ids=ids, attention_mask=mask, use_cache=False).logits


@torch.no_grad()
def _keys(run: Callable[[], Tensor], projection: DownProjection, batch: EditBatch) -> Keys:
    seen: list[Tensor] = []

    def keep(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        for x in (args[0], output):
            seen.append(widen(x.reshape(-1, x.shape[-1])[batch.flat_lookup.to(x.device)]))

    with hooked(projection.module, keep):
        run()
    return mean_keys(projection, batch, FirstPass(keys=seen[0], values=seen[1]))[0]


def _search(
    run: Callable[[], Tensor],
    projection: DownProjection,
    batch: EditBatch,
    value_init: Tensor,
    hparams: RomeHparams,
) -> tuple[Tensor, tuple[float, ...]]:
    """The loop of kmeng01/rome's compute_v.py with the solver of the search; offset and losses."""
    objective = Objective(batch, hparams, "torch")
    offsets = offsets_for(value_init[None], hparams, "torch")
    losses: list[float] = []

    def move(module: Any, args: Any, output: Tensor) -> Tensor:
        flat = output.reshape(-1, output.shape[-1])
        at = (batch.flat_lookup.to(flat.device),)
        delta = offsets.deltas[0].to(flat.dtype)
        return flat.index_put(at, delta, accumulate=True).view_as(output)

    with hooked(projection.module, move):
        while True:
            offsets.deltas.requires_grad_()
            with torch.enable_grad():
                logits = run()[batch.read_rows, batch.read_positions]
            loss, gradient, right = objective(logits.detach())
            total = offsets.totals(loss)
            found = offsets.found(total, right)
            ends, reached = offsets.ends(total, found)
            losses.append(reached.item())
            if found[0] or len(losses) == hparams.v_num_grad_steps:
                return ends[0], tuple(losses)
            (gradients,) = torch.autograd.grad(logits, [offsets.deltas], gradient)
            offsets.step(gradients, loss, right)
