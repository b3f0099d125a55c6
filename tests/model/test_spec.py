"""Blocks and down-projections are found by structure, whatever they are called and lie beside."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import nn

from rome_fast.errors import UnsupportedModelError
from rome_fast.model.activations import read_activations
from rome_fast.model.spec import ModelSpec
from rome_fast.model.structure import routed_experts
from rome_fast.model.wrappers import base_modules, base_parameters, plain_name, unwrapped

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES = {
    "gpt2": (hf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4), "mlp.c_proj", "in_out"),
    "gptj": (
        hf.GPTJConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4),
        "mlp.fc_out",
        "out_in",
    ),
    "gpt_neox": (
        hf.GPTNeoXConfig(**SMALL, intermediate_size=128),
        "mlp.dense_4h_to_h",
        "out_in",
    ),
    "opt": (hf.OPTConfig(**SMALL, ffn_dim=96, word_embed_proj_dim=32), "fc2", "out_in"),
    "llama": (hf.LlamaConfig(**WIDE), "mlp.down_proj", "out_in"),
    "mistral": (hf.MistralConfig(**WIDE), "mlp.down_proj", "out_in"),
    "qwen2": (hf.Qwen2Config(**WIDE), "mlp.down_proj", "out_in"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_down_projection_is_found(family):
    config, suffix, layout = FAMILIES[family]
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    spec = ModelSpec.of(model)
    assert spec.n_layers == 2
    projection = spec.down_projection(1)
    assert projection.name.endswith(f".1.{suffix}")
    assert projection.weight_layout == layout
    assert projection.d_value == 32
    assert projection.d_key == projection.weight.numel() // 32
    assert model.get_parameter(f"{projection.name}.weight") is projection.weight


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_stops_at_the_matrix_and_sees_what_it_computes(family):
    config, _, layout = FAMILIES[family]
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    projection = ModelSpec.of(model).down_projection(0)
    reached = []
    upper = ModelSpec.of(model).blocks[1].register_forward_hook(lambda *_: reached.append(1))
    ids = torch.randint(3, 64, (3, 5), generator=torch.Generator().manual_seed(1))
    keys, values = read_activations(model, projection, ids, torch.ones_like(ids))
    upper.remove()
    assert keys.shape == (3, 5, projection.d_key) and values.shape == (3, 5, 32)
    weight = projection.weight if layout == "out_in" else projection.weight.T
    bias = getattr(projection.module, "bias", None)
    expected = keys @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)
    assert not reached
    assert not projection.module._forward_hooks


def tiny_llama():
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**WIDE)).eval()


def decoys(n):
    return nn.ModuleList(nn.Linear(48, 32) for _ in range(n))


@pytest.mark.parametrize(
    "place", ["", "vision", "model.vision.encoder", "model.layers.0", "model.layers.1.mlp"]
)
def test_longer_lists_farther_from_the_embedding_are_no_blocks(place):
    """Of an image tower, beside the decoder or within it, and in a block."""
    model = tiny_llama()
    parent = model
    for name in filter(None, place.split(".")):
        if not hasattr(parent, name) and not name.isdigit():
            parent.add_module(name, nn.Module())
        parent = parent.get_submodule(name)
    parent.add_module("layers_of_another_kind", decoys(5))
    spec = ModelSpec.of(model)
    assert (spec.blocks_name, spec.n_layers) == ("model.layers", 2)


def test_of_lists_as_near_the_longest_is_that_of_the_blocks():
    model = tiny_llama()
    model.model.gated_cross_attention_layers = decoys(1)
    assert ModelSpec.of(model).blocks_name == "model.layers"


def test_a_model_without_a_list_or_a_width_is_refused():
    model = tiny_llama()
    model.model.layers = nn.Sequential(*model.model.layers)
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM has no list of decoder"):
        ModelSpec.of(model)
    model = tiny_llama()
    model.config = hf.PretrainedConfig()
    with pytest.raises(UnsupportedModelError, match="configuration of LlamaForCausalLM has no hid"):
        ModelSpec.of(model)


def test_two_matrices_and_none_are_refused():
    model = tiny_llama()
    model.model.layers[1].second = nn.Linear(48, 32)
    with pytest.raises(UnsupportedModelError, match=r"has 2 down-projections \(mlp.down_proj, sec"):
        ModelSpec.of(model).down_projection(1)
    model.model.layers[0].mlp = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="layer 0 has no dense down-projection"):
        ModelSpec.of(model).down_projection(0)


class Stacked(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(4, 48, 32))


@pytest.mark.parametrize(
    ("made", "is_mixture"),
    [
        (Stacked, True),
        (lambda: decoys(2), True),
        (lambda: nn.ModuleDict({"router": nn.Linear(32, 4)}), True),
        (lambda: decoys(1), False),
        (lambda: nn.ModuleList([nn.Linear(32, 48), nn.Linear(48, 32)]), False),
        (lambda: nn.ModuleList([nn.LayerNorm(32), nn.LayerNorm(32)]), False),
        (lambda: nn.Conv1d(32, 32, 3), False),
        (nn.Identity, False),
    ],
)
def test_experts_are_known_by_their_structure(made, is_mixture):
    block = tiny_llama().model.layers[0]
    block.mlp.part = made()
    assert bool(routed_experts(block)) == is_mixture


def test_names_and_parameters_are_those_of_the_plain_model():
    model, plain = tiny_llama(), tiny_llama()
    model.model.layers[0].mlp = torch.compile(model.model.layers[0].mlp, backend="eager")
    model.model = torch.compile(model.model, backend="eager")
    names = dict(model.named_parameters())
    assert "model._orig_mod.layers.0.mlp._orig_mod.down_proj.weight" in names
    found = base_parameters(model)
    assert list(found) == [name for name, _ in plain.named_parameters()]
    assert [plain_name(name) for name in names] == list(found)
    assert all(found[plain_name(name)] is p for name, p in names.items())
    assert [n for n, _ in base_modules(model)] == [n for n, _ in plain.named_modules()]
    assert unwrapped(torch.compile(model, backend="eager")) is model and unwrapped(plain) is plain


def test_a_tied_head_is_one_parameter():
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**WIDE, tie_word_embeddings=True))
    assert list(base_parameters(model)) == [name for name, _ in model.named_parameters()]
