"""What a probe says of a model's parts is what its configuration says."""

from __future__ import annotations

import copy

import multimodal
import pytest
import torch
from families import lively_family
from helpers import same_bits, state
from internlm_like import internlm_like
from mixtures import MIXTURES
from tiny import tiny_gpt2

from rome_fast import Anatomy
from rome_fast.errors import UnsupportedModelError

V = 100
AS_IT_IS = "given to the first block as it is"
POSITIONS = "given to the first block as it is and positions added"
SCALED = "given to the first block times 5.66"  # sqrt(32)
PLAIN = "its output is the logits"
# Family, changes: entry, logits, final norm, tied; projection, gated, parallel, residual, bias.
EXPECTED = [
    ("GPT2", {}, POSITIONS, PLAIN, "transformer.ln_f", True,
     ("mlp.c_proj", False, False, 1.0, True)),
    ("Llama", {}, AS_IT_IS, PLAIN, "model.norm", False,
     ("mlp.down_proj", True, False, 1.0, False)),
    ("GPTJ", {}, AS_IT_IS, PLAIN, "transformer.ln_f", False,
     ("mlp.fc_out", False, True, 1.0, True)),
    ("GPTNeoX", {}, AS_IT_IS, PLAIN, "gpt_neox.final_layer_norm", False,
     ("mlp.dense_4h_to_h", False, True, 1.0, True)),
    ("GPTNeoX", {"use_parallel_residual": False}, AS_IT_IS, PLAIN, "gpt_neox.final_layer_norm",
     False, ("mlp.dense_4h_to_h", False, False, 1.0, True)),
    ("OPT", {}, POSITIONS, PLAIN, "model.decoder.final_layer_norm", True,
     ("fc2", False, False, 1.0, True)),
    ("Bloom", {}, "normalised for the first block", PLAIN, "transformer.ln_f", True,
     ("mlp.dense_4h_to_h", False, False, 1.0, True)),
    ("Phi3", {}, AS_IT_IS, PLAIN, "model.norm", False,
     ("mlp.down_proj", True, False, 1.0, False)),
    ("Gemma2", {"final_logit_softcapping": 20.0}, SCALED, "its output is capped softly at 20",
     "model.norm", True, ("mlp.down_proj", True, False, None, False)),
    ("Olmo2", {}, AS_IT_IS, PLAIN, "model.norm", False,
     ("mlp.down_proj", True, False, None, False)),
    ("Cohere", {"logit_scale": 0.25}, AS_IT_IS, "its output is the logits, times 0.25",
     "model.norm", True, ("mlp.down_proj", True, True, 1.0, False)),
    ("Granite", {"embedding_multiplier": 3.0}, "given to the first block times 3",
     "its output is the logits, times 0.5", "model.norm", False,
     ("mlp.down_proj", True, False, 0.5, False)),
]  # fmt: skip


@pytest.mark.parametrize("case", EXPECTED, ids=lambda case: f"{case[0]} {case[1]}")
def test_families(case):
    family, changes, entry, logits, final_norm, tied, layer = case
    model = lively_family(family, V, **changes)
    before = state(model)
    found = Anatomy.of(model)
    assert same_bits(model, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert (found.entry, found.logits, found.final_norm) == (entry, logits, final_norm)
    assert (found.tied, found.rows, found.d_model, len(found.layers)) == (tied, V, 32, 3)
    for one in found.layers:
        said = (one.projection, one.gated, one.parallel, one.residual, one.bias)
        assert said == layer and not one.refusal
        weight = dict(model.named_modules())[f"{found.blocks}.{one.layer}.{one.projection}"].weight
        in_out = one.layout == "in_out"
        assert tuple(weight.shape) == (
            (one.d_key, one.d_value) if in_out else (one.d_value, one.d_key)
        )
    assert "layers 0-2" in str(found)


def test_another_width_of_the_embedding():
    found = Anatomy.of(lively_family("OPT 350m", V))
    assert found.entry == "projected to 32 for the first block"


def test_wrappers_and_code_of_ones_own():
    image = Anatomy.of(multimodal.build("LLaVA", V)[0])
    assert image.blocks == "model.language_model.layers" and len(image.layers) == 3
    assert image.final_norm == "model.language_model.norm"
    remote = Anatomy.of(internlm_like(V))
    assert (remote.embedding, remote.head) == ("model.tok_embeddings", "output")
    assert [layer.projection for layer in remote.layers] == ["feed_forward.w2"] * 3


def test_a_layer_that_text_passes_by():
    found = Anatomy.of(multimodal.build("Mllama", V)[0])
    [passed] = [layer for layer in found.layers if layer.refusal]
    assert passed.refusal == "a text without images does not pass through it"


def test_layers_that_are_refused_are_said_in_one_line():
    found = Anatomy.of(MIXTURES["Mixtral"].build(V))
    assert "layers 0-2    refused: is a mixture of experts" in str(found)
    assert "Dense layers: none." in found.layers[0].refusal


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_dtype(dtype):
    model, _ = tiny_gpt2()
    wide, found = Anatomy.of(copy.deepcopy(model)), Anatomy.of(model.to(dtype))
    assert (found.entry, found.logits) == (wide.entry, wide.logits)
    assert {layer.dtype for layer in found.layers} == {str(dtype).removeprefix("torch.")}
    assert [layer.residual for layer in found.layers] == [1.0] * 4


@pytest.mark.parametrize("model", [None, torch.nn.Linear(2, 2)], ids=["nothing", "no model"])
def test_what_is_no_decoder(model):
    with pytest.raises(UnsupportedModelError, match="must be a Hugging Face decoder"):
        Anatomy.of(model)


def test_one_layer_unlike_the_others():
    """A bias in one layer alone."""
    model = lively_family("Llama", V)
    projection = model.model.layers[1].mlp.down_proj
    projection.bias = torch.nn.Parameter(torch.zeros(32))
    found = Anatomy.of(model)
    assert [layer.bias for layer in found.layers] == [False, True, False]
    text = str(found)
    assert all(f"layer {i} " in text for i in range(3)) and "layers 0-2" not in text
