"""What is found in a model by running it, against what its configuration asks for."""

from __future__ import annotations

import pytest
import torch
from families import lively_family
from helpers import same_bits, state
from tiny import metaspace_tokenizer
from torch import nn
from zoo import ZOO

from rome_fast.anatomy import Anatomy
from rome_fast.errors import UnsupportedModelError

MEMBERS = {member.name: member for member in ZOO}
# before, after_head, and of every layer: after, parallel, gated, bias; by default these:
PLAIN = ("nothing", "nothing", "nothing", False, True, False)
EXPECTED = {
    "GPT2": ("plus positions", "nothing", "nothing", False, False, True),
    "Llama": PLAIN,
    "Gemma": ("times 5.66", "nothing", "nothing", False, True, False),
    "Gemma2": ("times 5.66", "soft cap 30", "a norm", False, True, False),
    "Gemma2 soft caps": ("times 5.66", "soft cap 3", "a norm", False, True, False),
    "Gemma3": ("times 5.66", "nothing", "a norm", False, True, False),
    "Gemma3 multimodal": ("times 5.66", "nothing", "a norm", False, True, False),
    "Bloom": ("a norm", "nothing", "nothing", False, False, True),
    "GPTJ": ("nothing", "nothing", "nothing", True, False, True),
    "Pythia": ("nothing", "nothing", "nothing", True, False, True),
    "GPT-NeoX, one by one": ("nothing", "nothing", "nothing", False, False, True),
    "Falcon": ("nothing", "nothing", "nothing", True, False, False),
    "Falcon RW": ("nothing", "nothing", "nothing", False, False, True),
    "Phi": ("nothing", "nothing", "nothing", True, False, True),
    "Phi3": PLAIN,
    "StableLm": PLAIN,
    "StableLM, parallel": ("nothing", "nothing", "nothing", True, True, False),
    "OPT": ("plus positions", "nothing", "nothing", False, False, True),
    "OPT 350m": ("a projection, plus positions", "nothing", "a norm", False, False, True),
    "Cohere": ("nothing", "times 0.0625", "nothing", True, True, False),
    "Olmo2": ("nothing", "nothing", "a norm", False, True, False),
    "Granite": ("nothing", "times 0.5", "times 0.5", False, True, False),
    "Granite 3": ("times 12", "nothing", "times 0.5", False, True, False),
    "Nemotron": ("nothing", "nothing", "nothing", False, False, False),
    "InternLM-like, remote code": PLAIN,
}
PATHS = {  # embedding, final norm, head, down-projection
    "GPT2": ("transformer.wte", "transformer.ln_f", "lm_head", "transformer.h.{}.mlp.c_proj"),
    "OPT 350m": (
        "model.decoder.embed_tokens",
        "",
        "lm_head",
        "model.decoder.layers.{}.fc2",
    ),
    "InternLM-like, remote code": (
        "model.tok_embeddings",
        "model.norm",
        "output",
        "model.layers.{}.feed_forward.w2",
    ),
    "Olmo": ("model.embed_tokens", "model.norm", "lm_head", "model.layers.{}.mlp.down_proj"),
    "LLaVA": (
        "model.language_model.embed_tokens",
        "model.language_model.norm",
        "lm_head",
        "model.language_model.layers.{}.mlp.down_proj",
    ),
}


def built(name):
    return MEMBERS[name].build(len(metaspace_tokenizer()))


def said_alike(found, expected):
    """Equal, up to how a number is rounded in bfloat16."""
    words = [[word for part in side for word in str(part).split()] for side in (found, expected)]
    return len(words[0]) == len(words[1]) and all(
        a == b or (b[0].isdigit() and float(a) == pytest.approx(float(b), rel=0.01))
        for a, b in zip(*words, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_done_on_the_way(name, dtype):
    anatomy = Anatomy.of(built(name).to(dtype))
    assert len(anatomy.layers) == 3
    for layer in anatomy.layers:
        found = layer.after, layer.parallel, layer.gated, layer.bias
        assert said_alike((anatomy.before, anatomy.after_head, *found), EXPECTED[name])
        assert layer.dtype == str(dtype).removeprefix("torch.")
        assert (layer.d_value, layer.device, layer.obstacle) == (32, "cpu", "")


@pytest.mark.parametrize("name", PATHS)
def test_paths(name):
    model = built(name)
    anatomy = Anatomy.of(model)
    [down] = {layer.name for layer in anatomy.layers}
    assert (anatomy.embedding, anatomy.final_norm, anatomy.head, down) == PATHS[name]
    assert down.startswith(f"{anatomy.blocks}.{{}}.")
    weight = model.get_submodule(down.format(1)).weight
    assert {anatomy.layers[1].d_key, 32} == set(weight.shape)


@pytest.mark.parametrize(("name", "tied"), [("GPT2", True), ("GPT-2 untied", False)])
def test_a_tied_head(name, tied):
    assert Anatomy.of(built(name)).tied == tied


def test_nothing_is_changed():
    model = built("Gemma2").train()
    before = state(model)
    first = Anatomy.of(model)
    assert model.training and same_bits(model, before)
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks
    assert Anatomy.of(model) == first


def test_a_layer_that_cannot_be_edited_says_why():
    model = built("Qwen2-MoE")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    editable, damaged, mixture = Anatomy.of(model).layers
    assert editable.obstacle == "" and editable.after == "nothing"
    assert damaged.obstacle.startswith("model.layers.{}.mlp.down_proj.weight already holds NaN")
    assert mixture.obstacle.startswith("it is a mixture of experts")
    assert mixture.obstacle.endswith("Dense layers: 0, 1.")
    assert Anatomy.of(built("Mllama")).layers[1].obstacle == "it is not used on text alone"


def test_a_head_with_a_map_of_its_own_is_unknown():
    model = lively_family("Llama", 60)
    own = model.forward

    def forward(*args, **kwargs):
        out = own(*args, **kwargs)
        out.logits = out.logits + 1
        return out

    model.forward = forward
    assert Anatomy.of(model).after_head == "unknown"


MIXTURE = (
    "it is a mixture of experts, and ROME is defined for one dense matrix; it has no shared "
    "expert. Dense layers: 1."
)
DENSE = (
    "model.layers.{}.mlp.down_proj [48 -> 32], out_in, no bias, float32 on cpu; gated, after "
    "attention"
)


def test_it_reads_like_this():
    text = str(Anatomy.of(built("Qwen3-MoE")))
    assert text.splitlines() == [
        "Qwen3MoeForCausalLM",
        "  blocks       model.layers, 3 of width 32",
        "  embedding    model.embed_tokens",
        "  final norm   model.norm",
        "  head         lm_head",
        f"  layers 0, 2  cannot be edited: {MIXTURE}",
        f"  layers 1     {DENSE}",
    ]
    text = str(Anatomy.of(built("Gemma2")))
    assert "model.embed_tokens, then times 5.66" in text
    assert "lm_head, tied, then soft cap 30" in text
    assert "  layers 0-2  model.layers.{}.mlp.down_proj [48 -> 32]" in text
    assert text.endswith("gated, after attention, then a norm")


def test_no_decoder():
    with pytest.raises(UnsupportedModelError, match="language-model head, got Linear"):
        Anatomy.of(nn.Linear(2, 2))
