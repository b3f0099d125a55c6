"""Blocks on several devices: no tensor of the library meets one of another device."""

from __future__ import annotations

import copy

import pytest
import torch
from family_checks import case, options
from pretend_devices import PretendDevices, device
from structures import STRUCTURES, built

import rome_fast
from rome_fast.model.spec import ModelSpec
from rome_fast.value import window

REQUESTS = [case(), case("last", 1, "Ada Lovelace"), case("first", 3, "Eiffel Tower")]
WAYS = {
    "one after the other": ({}, {}),
    "in a window": ({"order": "independent", "window": 3}, {}),
    "in bfloat16": ({}, {"compute_dtype": "bfloat16"}),
    # A part is run again for its gradients, from inside of torch: there nothing is pretended.
    "in parts": ({}, {"v_num_grad_steps": 1}),
}


def spread(pretend, model):
    """The words on device 0, every block on one of its own, the head on the last."""
    spec = ModelSpec.of(model)
    blocks = {id(m) for block in spec.blocks for m in block.modules()}
    outside = [m for m in model.modules() if not list(m.children()) and id(m) not in blocks]
    for module in outside:
        pretend.place(module, device(0))
    for number, block in enumerate(spec.blocks):
        pretend.place(block, device(number))
    head = model.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        pretend.place(head, device(spec.n_layers))


@pytest.mark.covering(family=["Llama"], way=["one after the other", "in a window"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", STRUCTURES)
def test_edits_of_blocks_on_several_devices(family, way, monkeypatch):
    """Those of one device, and solved where the edited matrix lies."""
    model, tok = built(family, STRUCTURES[family])
    how, hparams = WAYS[way]
    # The CPU's own kernels do not run for the pretended devices.
    settings = {**options(model, 1), **how, "progress": False, "backend": "torch"}
    settings["hparams"] = settings["hparams"].replace(**hparams)
    if way == "in parts":
        monkeypatch.setattr(
            window.KeyValueSearch, "_as_many_as_fit", lambda _, edits: (edits[:1], 2)
        )
    with rome_fast.trial(model, tok, REQUESTS, **settings) as expected:
        pass
    with PretendDevices() as pretend:
        model = copy.deepcopy(model)
        spread(pretend, model)
        with rome_fast.trial(model, tok, REQUESTS, **settings) as results:
            assert {result.update.u.device for result in results} == {device(1)}
    for result, other in zip(results, expected, strict=True):
        assert not any("whole model" in text for text in result.warnings)
        # In bfloat16 attention runs another kernel on a CPU than elsewhere.
        if way != "in bfloat16":
            assert result.losses == other.losses
            assert torch.equal(result.update.dense(), other.update.dense())


def test_tensors_on_two_devices_do_refuse_to_meet():
    with PretendDevices():
        a, b = torch.ones(2, device=device(0)), torch.ones(2).to(device(1))
        with pytest.raises(RuntimeError, match=r"on \['mps:0', 'mps:1'\]"):
            a + b
        assert (a + b.to(a)).device == device(0) and b.device == device(1)
        assert a[torch.tensor([1])].device == device(0)
