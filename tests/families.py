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
}
# BLOOM builds its ALiBi distances from a two-dimensional mask only.
SEPARATING = [family for family in FAMILIES if family != "Bloom"]


def tiny_family(family: str) -> transformers.PreTrainedModel:
    """3 layers, width 32; seeded."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    named = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    return getattr(transformers, named)(config).eval()
