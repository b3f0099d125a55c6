"""Whether the step of a model's search can be captured as a CUDA graph, found without a GPU.

A capture fails where Python asks for a number that the device has computed, and where a tensor is
copied from the host. The first ends a recording of the step (``recorded``), the second a step on a
device that is pretended (``pretend_devices``).
"""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from family_checks import CONTEXTS, options
from pretend_devices import PretendDevices, device
from recorded import record_graphs

import rome_fast
from rome_fast.hparams import RomeHparams
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.encode import encode
from rome_fast.value import graph
from rome_fast.value.batch import EditBatch
from rome_fast.value.first_pass import run_first_pass
from rome_fast.value.key import mean_keys
from rome_fast.value.objective import Objective
from rome_fast.value.optimize import offsets_for
from rome_fast.value.search import Search

# transformers 4 makes masks inside of vmap, where no device is pretended.
CAN_PRETEND = not transformers.__version__.startswith("4.")


def graph_obstacle(model, tok, request, layer: int = 1, **hparams) -> str:
    """Why no step can be captured, or ""."""
    settings = options(model, layer, **hparams)
    with pytest.MonkeyPatch.context() as patch:
        captures = record_graphs(patch)
        with rome_fast.trial(model, tok, request, **settings) as result:
            said = [text for text in result.warnings if "CUDA graph" in text or "slowly" in text]
        graph.forget(model)
    if said or not captures:
        return said[0].split(": ", 2)[-1] if said else "the whole model runs in every step"
    if not CAN_PRETEND:
        return ""
    edit = encode(tok, rome_fast.EditRequest.parse(request), CONTEXTS)
    return step_elsewhere(copy.deepcopy(model), EditBatch.of([edit]), settings["hparams"])


def step_elsewhere(model, batch: EditBatch, hparams: RomeHparams) -> str:
    """Make a step on another device; what it had to move, or ""."""
    gpu = device(0)
    with PretendDevices() as pretend:
        spec = ModelSpec.of(model)
        projection = spec.down_projection(hparams.layer, hparams.shared_expert)
        pretend.place(model, gpu)
        first = run_first_pass(spec, projection, batch)
        init = torch.stack([keys.value_init for keys in mean_keys(projection, batch, first)])
        search, objective = (
            Search(spec, projection, batch, first),
            Objective(batch, hparams, "torch"),
        )
        objective.start_from(search.unmoved_logits)
        offsets = offsets_for(init, hparams, "torch")
        own = graph.Problem(search.suffix, objective, offsets).mapped(torch.clone)
        assert {x.device for x in own.tensors()} == {gpu}
        pretend.may_move = False
        with pytest.raises(RuntimeError, match=r"to cpu"):
            first.logits.cpu()
        try:
            logits, gradients, losses, right = own.compute()
            own.offsets.step(gradients, losses, right)
        except RuntimeError as error:
            return str(error).splitlines()[0]
        assert {x.device for x in (logits, gradients, own.offsets.deltas)} == {gpu}
        assert int(own.offsets.n_steps) == 1
    return ""
