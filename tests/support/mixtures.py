"""Miniature mixtures of experts: all layers, some layers, with and without a shared expert."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from families import LLAMA_LIKE, livened


@dataclass(frozen=True)
class Mixture:
    """A family of three layers.

    Attributes:
        stem: of its class.
        dense: its layers without experts.
        shared: whether the others have an expert that all tokens share.
    """

    stem: str
    dense: list[int]
    shared: bool
    settings: dict[str, Any] = field(default_factory=dict)

    def build(self, vocabulary: int) -> transformers.PreTrainedModel:
        """Seeded and livened."""
        torch.manual_seed(0)
        settings = {**LLAMA_LIKE, "vocab_size": vocabulary, "pad_token_id": 0, **self.settings}
        kind = "TextConfig" if self.stem == "Llama4" else "Config"
        config = getattr(transformers, f"{self.stem}{kind}")(**settings)
        model = getattr(transformers, f"{self.stem}ForCausalLM")(config)
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # the grouped one lacks float64
        return livened(model.eval(), vocabulary)


_QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
_DEEPSEEK = {
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
MIXTURES = {
    "Mixtral": Mixture("Mixtral", [], False, {"num_local_experts": 4}),
    "Qwen2-MoE": Mixture(
        "Qwen2Moe",
        [0, 1],
        True,
        {**_QWEN, "mlp_only_layers": [0, 1], "shared_expert_intermediate_size": 24},
    ),
    "Qwen3-MoE": Mixture("Qwen3Moe", [1], False, {**_QWEN, "head_dim": 8, "mlp_only_layers": [1]}),
    "DeepSeek-V2": Mixture("DeepseekV2", [0], True, {**_DEEPSEEK, "head_dim": 8}),
    "DeepSeek-V3": Mixture("DeepseekV3", [0], True, _DEEPSEEK),
    "Llama 4": Mixture(
        "Llama4",
        [0, 2],
        True,
        {
            "interleave_moe_layer_step": 2,
            "num_local_experts": 4,
            "intermediate_size": 40,
            "intermediate_size_mlp": 48,
            "head_dim": 8,
        },
    ),
    "GraniteMoE": Mixture("GraniteMoe", [], False, {"num_local_experts": 4}),
    "GraniteMoE shared": Mixture(
        "GraniteMoeShared", [], True, {"num_local_experts": 4, "shared_intermediate_size": 24}
    ),
    "OLMoE": Mixture("Olmoe", [], False, {"num_experts": 4, "num_experts_per_tok": 2}),
    "DBRX": Mixture(
        "Dbrx",
        [],
        False,
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 3,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "GPT-OSS": Mixture("GptOss", [], False, {"num_local_experts": 4, "head_dim": 8}),
    "Ernie4.5-MoE": Mixture(
        "Ernie4_5_Moe",
        [0],
        True,
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 24,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
            "head_dim": 8,
        },
    ),
    "GLM-4-MoE": Mixture(
        "Glm4Moe",
        [0],
        True,
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "head_dim": 8,
        },
    ),
    "PhiMoE": Mixture("Phimoe", [], False, {"num_local_experts": 4}),
}
