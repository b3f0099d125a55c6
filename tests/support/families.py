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
# Variants of these, and families that differ less from them: name -> (class, configuration).
MORE = {
    "Llama tied": ("Llama", {**LLAMA_LIKE, "tie_word_embeddings": True}),
    "Llama 3": (
        "Llama",
        {
            **LLAMA_LIKE,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "Qwen2.5": ("Qwen2", {**LLAMA_LIKE, "tie_word_embeddings": True, "rope_theta": 1e6}),
    "Pythia": ("GPTNeoX", {**SMALL, "intermediate_size": 64, "use_parallel_residual": True}),
    "GPT-NeoX, one by one": (
        "GPTNeoX",
        {**SMALL, "intermediate_size": 64, "use_parallel_residual": False},
    ),
    "StableLM, parallel": ("StableLm", {**LLAMA_LIKE, "use_parallel_residual": True}),
    "Falcon 40B": ("Falcon", {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon RW": (
        "Falcon",
        {**SMALL, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
    ),
    "OPT 350m": (
        "OPT",
        {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "GPT-2 untied": ("GPT2", {**GPT_LIKE, "n_positions": 64, "tie_word_embeddings": False}),
    "Gemma untied": ("Gemma", {**LLAMA_LIKE, "head_dim": 8, "tie_word_embeddings": False}),
    "Gemma2 soft caps": (
        "Gemma2",
        {
            **LLAMA_LIKE,
            "head_dim": 8,
            "sliding_window": 4,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "Granite 3": (
        "Granite",
        {**LLAMA_LIKE, "embedding_multiplier": 12.0, "residual_multiplier": 0.5},
    ),
    "Glm4": ("Glm4", {**LLAMA_LIKE, "head_dim": 8, "pad_token_id": 0}),
    "Exaone4": ("Exaone4", {**LLAMA_LIKE, "sliding_window": 4, "sliding_window_pattern": 2}),
    "Ernie4.5": ("Ernie4_5", {**LLAMA_LIKE, "head_dim": 8}),
    "Helium": ("Helium", {**LLAMA_LIKE, "head_dim": 8}),
    "Nemotron": ("Nemotron", LLAMA_LIKE),
    "Hunyuan dense": ("HunYuanDenseV1", {**LLAMA_LIKE, "head_dim": 8}),
    "Seed-OSS": ("SeedOss", {**LLAMA_LIKE, "head_dim": 8}),
    "Olmo3": ("Olmo3", {**LLAMA_LIKE, "sliding_window": 4}),
    "Ministral": ("Ministral", {**LLAMA_LIKE, "head_dim": 8, "sliding_window": 4}),
    "Apertus": ("Apertus", LLAMA_LIKE),
    "Arcee": ("Arcee", {**LLAMA_LIKE, "head_dim": 8}),
    "Persimmon": ("Persimmon", {**SMALL, "intermediate_size": 64}),
    # In transformers 5 only.
    "Ministral 3": ("Ministral3", {**LLAMA_LIKE, "head_dim": 8}),
    "NanoChat": ("NanoChat", LLAMA_LIKE),
    "Cwm": ("Cwm", {**LLAMA_LIKE, "head_dim": 8}),
}
# BLOOM and MPT build their ALiBi distances without position ids.
SEPARATING = [family for family in FAMILIES if family not in ("Bloom", "Mpt")]


def tiny_family(family: str, **changes) -> transformers.PreTrainedModel:
    """3 layers, width 32; seeded. ``changes`` go to the configuration.

    Raises:
        AttributeError: this transformers does not have the family.
    """
    torch.manual_seed(0)
    stem, settings = MORE[family] if family in MORE else (family, FAMILIES[family])
    text = "Text" if family == "Gemma3" else ""
    config = getattr(transformers, f"{stem}{text}Config")(**{**settings, **changes})
    named = "GPT2LMHeadModel" if stem == "GPT2" else f"{stem}ForCausalLM"
    return getattr(transformers, named)(config).eval()


def lively_family(family: str, vocabulary: int, **changes) -> transformers.PreTrainedModel:
    """``tiny_family`` with weights that are ``livened``."""
    return livened(tiny_family(family, vocab_size=vocabulary, **changes), vocabulary)


@torch.no_grad()
def livened(model, vocabulary: int) -> transformers.PreTrainedModel:
    """Scale weights to trained size in place: attention has preferences, blocks outweigh words.

    Freshly drawn, attention is uniform, blocks add next to nothing and all logits are alike.
    """
    # Apertus builds its activation's parameters in bfloat16, whatever the model is in.
    for parameter in model.float().parameters():
        if parameter.dim() in (2, 3):
            is_table = vocabulary in parameter.shape
            parameter.mul_((0.35 if is_table else 0.25) / parameter.std())
        elif not parameter.any():  # a bias of zero would hide that it is forgotten
            parameter.normal_(std=0.1)
    return model
