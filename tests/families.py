"""Miniature random models of many families, built from their configurations: no download."""

from __future__ import annotations

import torch
import transformers

VOCABULARY = 60
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
LLAMA_LIKE = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
GPT_LIKE = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4}
FAMILIES = {
    "GPT2": {**GPT_LIKE, "n_positions": 64},
    "Llama": LLAMA_LIKE,
    "Mistral": {**LLAMA_LIKE, "sliding_window": 4},
    "Qwen2": LLAMA_LIKE,
    "Gemma2": {**LLAMA_LIKE, "head_dim": 8, "sliding_window": 4},
    "GPTNeoX": {**SMALL, "intermediate_size": 64},
    "GPTJ": {**GPT_LIKE, "rotary_dim": 4},
    "OPT": {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "Falcon": SMALL,
    "GPTNeo": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 4,
    },
    "GPTBigCode": {**GPT_LIKE, "n_positions": 64},
    "CodeGen": {**GPT_LIKE, "rotary_dim": 4},
    "Mpt": {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 3,
        "expansion_ratio": 2,
    },
    "Phi": {**SMALL, "intermediate_size": 64},
    "Phi3": {**LLAMA_LIKE, "pad_token_id": 0},
    "StableLm": LLAMA_LIKE,
    "Qwen3": {**LLAMA_LIKE, "head_dim": 8},
    "Gemma": {**LLAMA_LIKE, "head_dim": 8},
    "Gemma3": {**LLAMA_LIKE, "head_dim": 8, "sliding_window": 4},
    "Cohere": LLAMA_LIKE,
    "Cohere2": {**LLAMA_LIKE, "sliding_window": 4},
    "Olmo": LLAMA_LIKE,
    "Olmo2": LLAMA_LIKE,
    "Granite": {**LLAMA_LIKE, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "Starcoder2": {**LLAMA_LIKE, "sliding_window": 4},
    "SmolLM3": {**LLAMA_LIKE, "pad_token_id": 0},
    "Glm": {**LLAMA_LIKE, "head_dim": 8, "pad_token_id": 0},
}
# BLOOM and MPT build their ALiBi distances without position ids.
SEPARATING = [family for family in FAMILIES if family not in ("Bloom", "Mpt")]


def tiny_family(family: str, **changes) -> transformers.PreTrainedModel:
    """3 layers, width 32; seeded. ``changes`` go to the configuration."""
    torch.manual_seed(0)
    text = "Text" if family == "Gemma3" else ""
    config = getattr(transformers, f"{family}{text}Config")(**{**FAMILIES[family], **changes})
    named = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    return getattr(transformers, named)(config).eval()


@torch.no_grad()
def lively_family(family: str, vocabulary: int, **changes) -> transformers.PreTrainedModel:
    """As large as trained weights would be: attention prefers some tokens, blocks outweigh words.

    Freshly drawn, attention is uniform, blocks add next to nothing and all logits are alike.
    """
    model = tiny_family(family, vocab_size=vocabulary, **changes)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            is_table = vocabulary in parameter.shape
            parameter.mul_((0.35 if is_table else 0.25) / parameter.std())
        elif not parameter.any():  # a bias of zero would hide that it is forgotten
            parameter.normal_(std=0.1)
    return model
