"""The down-projection is found by structure in families that name and shape it differently."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from rome_fast.key import capture
from rome_fast.models import ModelSpec

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
    keys, values = capture(model, projection, ids, torch.ones_like(ids))
    upper.remove()
    assert keys.shape == (3, 5, projection.d_key) and values.shape == (3, 5, 32)
    weight = projection.weight if layout == "out_in" else projection.weight.T
    bias = getattr(projection.module, "bias", None)
    expected = keys @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)
    assert not reached
    assert not projection.module._forward_hooks
