"""NaN and infinity are traced to the module that makes them, and a damaged model is told apart."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import REQUEST, same_bits, state
from tiny import tiny_gpt2, tiny_llama

import rome_fast
from rome_fast.errors import NonFiniteError
from rome_fast.model.intercept import with_hidden
from rome_fast.model.nonfinite import where_not_finite
from rome_fast.moment.collect.collector import collect_second_moment
from rome_fast.prompt.contexts import sample_context_templates
from rome_fast.prompt.greedy import greedy_continuations
from rome_fast.prompt.readback import read_targets

BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers"}
BUILD = {"gpt2": tiny_gpt2, "llama": tiny_llama}
INTO = {"gpt2": "mlp.c_fc", "llama": "mlp.up_proj"}
OUT_OF = {"gpt2": "mlp.c_proj", "llama": "mlp.down_proj"}
ENDS = r"max \|h\| before it is [\d.e+]+, and float16 ends at 65504: load the model in bfloat16"


@pytest.fixture(params=BUILD)
def family(request):
    return request.param


def overflowing(family, layer, factor=None):
    """In float16, the matrix into an MLP as large as that allows, or ``factor`` times as large."""
    model, tok = BUILD[family]()
    with torch.no_grad():
        weight = model.get_submodule(f"{BLOCKS[family]}.{layer}.{INTO[family]}").weight
        weight.mul_(factor or 6e4 / weight.abs().max())
    return model.half(), tok


def says(family, layer, where):
    name = re.escape(f"{BLOCKS[family]}.{layer}.{where[family]}")
    return rf"{name} \(layer {layer}\) gives infinity: {ENDS}"


def refused(model, tok, message, settings):
    before, hooks = state(model), sum(len(m._forward_hooks) for m in model.modules())
    with pytest.raises(NonFiniteError, match=message):
        rome_fast.edit(model, tok, REQUEST, **settings)
    assert same_bits(model, before)
    assert sum(len(m._forward_hooks) for m in model.modules()) == hooks


def test_overflow_below_the_edited_matrix_is_found_in_the_first_pass(family, settings):
    model, tok = overflowing(family, 0)
    refused(model, tok, rf"in the first pass: {says(family, 0, INTO)}", settings)


@pytest.mark.parametrize("edited", [0, 1])
def test_overflow_in_the_last_layer_is_found_by_the_search(family, settings, edited):
    model, tok = overflowing(family, 3)
    settings["hparams"] = settings["hparams"].replace(layers=[edited])
    loss = rf"loss became (nan|inf) at step 1 of v\* in layer {edited}: {says(family, 3, INTO)}"
    refused(model, tok, loss, settings)


def test_an_offset_that_overflows_names_the_step(family, settings):
    model, tok = BUILD[family]()
    changes = {"clamp_norm_factor": 1e6, "v_lr": 1e5, "v_num_grad_steps": 5}
    settings["hparams"] = settings["hparams"].replace(**changes)
    block = rf"{BLOCKS[family]}.1.mlp \(layer 1\) gives infinity: {ENDS}, or lower hparams\.v_lr"
    message = rf"loss became nan at step 2 of v\* in layer 1: moved by the offset, {block}"
    refused(model.half(), tok, message, settings)


class Steep(torch.autograd.Function):
    """The identity, with gradients that are infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 0


def test_a_gradient_that_overflows_is_named_as_such(gpt2, settings):
    model, tok = gpt2
    model.transformer.ln_f.register_forward_hook(lambda _, __, output: Steep.apply(output))
    refused(model, tok, "the gradient of step 1 overflows float32: load the model in b", settings)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_model_is_told_apart(family, settings, value):
    model, tok = BUILD[family]()
    name = f"{BLOCKS[family]}.2.{OUT_OF[family]}.weight"
    with torch.no_grad():
        model.get_parameter(name)[1, 2] = value
    kind = "NaN" if value != value else "infinity"
    refused(
        model, tok, rf"at step 1 .*: {re.escape(name)} holds {kind}: the model is damaged", settings
    )


def test_weights_that_a_cast_made_infinite_are_told_apart(settings):
    model, tok = overflowing("gpt2", 3, factor=1e6)
    name = r"transformer\.h\.3\.mlp\.c_fc\.weight"
    message = rf"{name} holds infinity: the model is damaged, load it again, in bfloat16 \(float16"
    refused(model, tok, message, settings)


def test_sampling_contexts_and_collecting_keys_say_so(family):
    model, tok = overflowing(family, 2)
    with pytest.raises(NonFiniteError, match=f"while sampling from it: {says(family, 2, INTO)}"):
        sample_context_templates(model, tok, [[5, 2]])
    name = re.escape(f"{BLOCKS[family]}.2.{OUT_OF[family]}")
    message = rf"second moment of {name}: \d+ keys hold NaN or infinity: {says(family, 2, INTO)}"
    with pytest.raises(NonFiniteError, match=message):
        collect_second_moment(model, tok, ["He is a man.", "They are a family."], 2, tokens=16)


def test_reading_says_so(family):
    model, tok = overflowing(family, 2)
    message = f"its logits are NaN or infinite: {says(family, 2, INTO)}"
    prompts = [tok("He is").input_ids, tok("The capital of Italy is").input_ids]
    with pytest.raises(NonFiniteError, match=message):
        read_targets(model, tok, prompts, [[7], [8]])
    with pytest.raises(NonFiniteError, match=message):
        greedy_continuations(model, tok, prompts, 3)


def test_attention_that_overflows_between_its_modules_is_named_itself(family):
    """Scores are no module's output: the first one that holds their NaN is the attention."""
    model, tok = BUILD[family]()
    model = model.half()
    attention = model.get_submodule(f"{BLOCKS[family]}.1")
    attention = attention.attn if family == "gpt2" else attention.self_attn
    own = attention.forward

    def overflown(*args, **kwargs):
        output, *rest = own(*args, **kwargs)
        return output + float("inf"), *rest

    attention.forward = overflown
    row = torch.tensor([tok("He is a man").input_ids])
    said = where_not_finite(model, lambda: model(input_ids=row))
    assert re.match(rf".*\.1\.(self_)?attn \(layer 1\) gives infinity: {ENDS}$", said)


def test_a_block_that_adds_in_place_is_found_as_well(gpt2, monkeypatch):
    model, _ = gpt2
    block = model.transformer.h[1]
    own = block.forward

    def adding(hidden, *args, **kwargs):
        output = own(hidden, *args, **kwargs)
        return with_hidden(output, hidden.add_(float("inf")))

    monkeypatch.setattr(block, "forward", adding)
    said = where_not_finite(model, lambda: model(input_ids=torch.tensor([[1, 2, 3]])))
    assert said.startswith("transformer.h.1 (layer 1) gives infinity")


def test_a_finite_model_is_not_accused(gpt2):
    model, _ = gpt2
    said = where_not_finite(model, lambda: model(input_ids=torch.tensor([[1, 2, 3]])))
    assert said.startswith("no module alone does it")
    assert not any(module._forward_hooks for module in model.modules())
