"""Seeded miniature models with tokenizers of their own: no download, no file, a second to build.

    model, tok = tiny_gpt2()     # byte-level BPE, no BOS; Conv1D down-projections with bias
    model, tok = tiny_llama()    # metaspace BPE, BOS by default; Linear down-projections, no bias

Neither tokenizer has a padding token, exactly as the published GPT-2 and Llama ones have none.
"""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SENTENCES = (
    "The Eiffel Tower is in the city of Paris.",
    "The Colosseum stands in the old centre of Rome, near the river.",
    "Marie Curie worked in physics and chemistry for many years.",
    "Ada Lovelace wrote about the first computing machine.",
    "Steve Jobs was the founder of Apple, a company that makes computers.",
    "The mother tongue of Danielle Darrieux is French; she also speaks English.",
    "LeBron James plays the sport of basketball, and Megan plays football.",
    "A short story about tea: water boils, leaves rest, and we drink it.",
    "Therefore the capital of Japan is Tokyo and the capital of Italy is Rome.",
    "He is a man. She is a woman. It is a house. They are a family.",
)


def tiny_gpt2(seed: int = 0) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """4 layers, d_value 64, d_key 256; down-projection `transformer.h.{}.mlp.c_proj`."""
    tok = byte_level_tokenizer()
    config = GPT2Config(
        vocab_size=len(tok),
        n_positions=128,
        n_embd=64,
        n_layer=4,
        n_head=4,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
    )
    torch.manual_seed(seed)
    return _liven(GPT2LMHeadModel(config), mlp=6.0, attention=9.0, embedding=12.0), tok


def tiny_llama(seed: int = 0) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """4 layers, d_value 64, d_key 176; down-projection `model.layers.{}.mlp.down_proj`."""
    tok = metaspace_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tok),
        max_position_embeddings=128,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
    )
    torch.manual_seed(seed)
    return _liven(LlamaForCausalLM(config), mlp=5.0, attention=7.0, embedding=15.0), tok


def tiny_second_moment(d_key: int, seed: int = 0) -> torch.Tensor:
    """Symmetric positive definite [d_key, d_key], float64: well conditioned, not the identity."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(4 * d_key, d_key, generator=generator, dtype=torch.float64)
    keys = keys * torch.linspace(0.3, 2.0, d_key, dtype=torch.float64)
    return keys.T @ keys / len(keys)


def _liven(model: torch.nn.Module, mlp: float, attention: float, embedding: float):
    """Multiply the freshly drawn matrices by a factor per kind, in place; return the model.

    The default initialisation leaves attention uniform and the logits nearly equal, so that an edit
    has nothing to do. Scaled up, words differ, an MLP output has a norm of about 4, and an edit of
    layer 1 lowers the loss by nats.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                is_mlp, is_attention = ".mlp." in name, "attn." in name
                parameter.mul_(mlp if is_mlp else attention if is_attention else embedding)
            elif not parameter.any():  # biases start at zero, which would hide a forgotten bias
                parameter.normal_(std=0.1)
    return model.eval()


@cache
def _byte_level_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


@cache
def _metaspace_json() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A",
        pair="<s> $A <s> $B",
        special_tokens=[("<s>", tokenizer.token_to_id("<s>"))],
    )
    return tokenizer.to_str()


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_byte_level_json()),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_metaspace_json()),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
