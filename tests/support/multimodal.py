"""Miniature multimodal models: an image tower that is longer than the text decoder behind it.

Each maker gives (the wrapper, a plain text model with the decoder's weights).
"""

from __future__ import annotations

import torch
import transformers
from families import LLAMA_LIKE, livened

# Number of ids for images, behind those of the tokenizer.
_EXTRA = 8
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


def llava(vocabulary: int):
    text = transformers.LlamaConfig(**_text(vocabulary))
    config = transformers.LlavaConfig(
        text_config=text,
        vision_config=transformers.CLIPVisionConfig(**_VISION, projection_dim=32),
        image_token_index=vocabulary,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    return _pair(model, transformers.LlamaForCausalLM(text))


def gemma3(vocabulary: int):
    text = transformers.Gemma3TextConfig(**_text(vocabulary), head_dim=8, sliding_window=4)
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=transformers.SiglipVisionConfig(**_VISION),
        mm_tokens_per_image=4,
        image_token_index=vocabulary,
        boi_token_index=vocabulary + 1,
        eoi_token_index=vocabulary + 2,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    return _pair(model, transformers.Gemma3ForCausalLM(text))


def qwen2_vl(vocabulary: int):
    config = transformers.Qwen2VLConfig(
        text_config={
            **_text(vocabulary),
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 5, "embed_dim": 32, "hidden_size": 32, "num_heads": 4},
        **_image_ids(vocabulary),
    )
    model = transformers.Qwen2VLForConditionalGeneration(config)
    return _pair(model, _qwen2(vocabulary))


def qwen2_5_vl(vocabulary: int):
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **_text(vocabulary),
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 5,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "out_hidden_size": 32,
        },
        **_image_ids(vocabulary),
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return _pair(model, _qwen2(vocabulary))


def idefics3(vocabulary: int):
    text = transformers.LlamaConfig(**_text(vocabulary))
    config = transformers.Idefics3Config(
        text_config=text,
        vision_config=_VISION,
        image_token_id=vocabulary,
    )
    model = transformers.Idefics3ForConditionalGeneration(config)
    return _pair(model, transformers.LlamaForCausalLM(text))


def mllama(vocabulary: int):
    """Its second block looks at images, and is not run on text alone."""
    configs = transformers.models.mllama.configuration_mllama
    text = configs.MllamaTextConfig(
        **_text(vocabulary), cross_attention_layers=[1], rope_scaling={"rope_type": "default"}
    )
    vision = configs.MllamaVisionConfig(
        hidden_size=32,
        num_hidden_layers=5,
        num_global_layers=1,
        attention_heads=4,
        intermediate_size=64,
        vision_output_dim=64,
        image_size=16,
        patch_size=8,
        intermediate_layers_indices=[1],
        supported_aspect_ratios=[[1, 1]],
    )
    config = transformers.MllamaConfig(
        text_config=text, vision_config=vision, image_token_index=vocabulary
    )
    model = transformers.MllamaForConditionalGeneration(config)
    return _pair(model, transformers.MllamaForCausalLM(text))


WRAPPERS = {
    "LLaVA": llava,
    "Gemma3 multimodal": gemma3,
    "Qwen2-VL": qwen2_vl,
    "Qwen2.5-VL": qwen2_5_vl,
    "Idefics3": idefics3,
    "Mllama": mllama,
}


def build(name: str, vocabulary: int):
    """Seeded and livened."""
    torch.manual_seed(0)
    return WRAPPERS[name](vocabulary)


def _text(vocabulary: int) -> dict:
    return {**LLAMA_LIKE, "vocab_size": vocabulary + _EXTRA, "pad_token_id": 0}


def _qwen2(vocabulary: int):
    """The plain model: on text alone, three-dimensional positions equal plain ones."""
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**_text(vocabulary), rope_theta=1e6, rms_norm_eps=1e-5)
    )


def _image_ids(vocabulary: int) -> dict:
    return {
        "image_token_id": vocabulary,
        "video_token_id": vocabulary + 1,
        "vision_start_token_id": vocabulary + 2,
        "vision_end_token_id": vocabulary + 3,
    }


def _pair(model, text):
    model = livened(model.eval(), model.get_input_embeddings().weight.shape[0])
    inside = model.model
    decoder = inside.language_model if hasattr(inside, "language_model") else inside.text_model
    text.model.load_state_dict(decoder.state_dict())
    text.lm_head.load_state_dict(model.lm_head.state_dict())
    return model, text.eval()
