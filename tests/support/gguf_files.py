"""Small GGUF files: a random Llama with the toy's tokenizer, as llama.cpp writes such files."""

from __future__ import annotations

import json

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rome_fast.demo import model_path

WIDTH, HEADS, LAYERS, HIDDEN = 64, 4, 2, 96


def llama(vocabulary: int) -> LlamaForCausalLM:
    """The model that the file holds, in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def write_gguf(path, *, architecture="llama", quantised=False, model=None):
    """Write a file and return its model; ``quantised``: matrices in Q8_0, and so is the model.

    ``model``: another than ``llama``, of the same size but for its hidden units.
    """
    import gguf

    tokenizer = json.loads((model_path() / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    merges = [" ".join(m) if isinstance(m, list) else m for m in tokenizer["merges"]]
    model = llama(len(tokens)) if model is None else model
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(model.config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    for i in range(LAYERS):
        for ours, theirs in (
            ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"),
            ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
        ):  # fmt: skip
            names[f"model.layers.{i}.{ours}.weight"] = f"blk.{i}.{theirs}.weight"
    state = model.state_dict()
    with torch.no_grad():
        for ours, theirs in names.items():
            array = state[ours].numpy()
            if quantised and array.ndim == 2:
                packed = gguf.quantize(array, gguf.GGMLQuantizationType.Q8_0)
                state[ours].copy_(
                    torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0))
                )
                if "attn_q" in theirs or "attn_k" in theirs:
                    packed = gguf.quantize(
                        _as_llama_cpp(state[ours].numpy()), gguf.GGMLQuantizationType.Q8_0
                    )
                writer.add_tensor(theirs, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            else:
                if "attn_q" in theirs or "attn_k" in theirs:
                    array = _as_llama_cpp(array)
                writer.add_tensor(theirs, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _as_llama_cpp(matrix):
    """llama.cpp keeps the two halves of a head that rotate together beside each other."""
    size = WIDTH // HEADS
    halves = matrix.reshape(HEADS, 2, size // 2, WIDTH)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(WIDTH, WIDTH))
