"""Models of published shapes with random weights, and a tokenizer that makes ordinary tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

import rome_fast
from benchmarks.edit.bench_edit import CONTEXTS
from benchmarks.gpu.run import Run
from benchmarks.support.results import ROOT, SHARED

END = "<|endoftext|>"


@dataclass(frozen=True)
class Model:
    """A shape.

    Attributes:
        config: its configuration, and that of a miniature with the same vocabulary rules.
        layer: the one that is edited.
        tokenizer: folder name of its own tokenizer, used where it is at hand.
    """

    config: Callable[[], Any]
    small: Callable[[], Any]
    layer: int
    tokenizer: str = ""


def _llama(**sizes: int) -> LlamaConfig:
    return LlamaConfig(max_position_embeddings=1024, **sizes)


MODELS = {
    "gpt2-xl": Model(
        lambda: GPT2Config(n_embd=1600, n_layer=48, n_head=25),
        lambda: GPT2Config(vocab_size=4500, n_embd=32, n_layer=3, n_head=2),
        layer=17,
        tokenizer="gpt2",
    ),
    "llama-3-8b": Model(
        lambda: _llama(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
        ),
        lambda: _llama(
            vocab_size=4500,
            hidden_size=32,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
        layer=5,
    ),
    "gpt-j-6b": Model(
        GPTJConfig,
        lambda: GPTJConfig(vocab_size=4500, n_embd=32, n_layer=3, n_head=2, rotary_dim=8),
        layer=5,
        tokenizer="gpt2",
    ),
}


def built(run: Run, name: str) -> tuple[Any, Any, int]:
    """(float32 model on the device, tokenizer, layer); nothing is fetched."""
    shape = MODELS[name]
    config = run.pick(shape.config, shape.small)()
    torch.manual_seed(0)
    with torch.device(run.device):
        model = AutoModelForCausalLM.from_config(config).eval()
    return model, tokenizer_of(shape.tokenizer, config.vocab_size), run.pick(shape.layer, 1)


def tokenizer_of(name: str, n_rows: int) -> Any:
    """The model's own where its files are beside or in the checkout, else one trained here."""
    for folder in (ROOT / "shared" / "data", SHARED):
        path = folder / "tokenizers" / name
        if name and n_rows > 50000 and path.exists():
            return AutoTokenizer.from_pretrained(path)
    end = {"bos_token": END, "eos_token": END, "unk_token": END}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained(n_rows)), **end)


@cache
def _trained(n_rows: int) -> str:
    """Byte-level BPE of the benchmark's own texts, whose common words are one token each, as in
    GPT-2's. Its vocabulary is filled up to that of the model with words that no text holds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(4000, n_rows),
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    facts = rome_fast.demo.load_facts()
    texts = [f"{fact.prompt.format(fact.subject)} {fact.target_new}" for fact in facts]
    tokenizer.train_from_iterator([*50 * CONTEXTS, *texts], trainer)
    state = json.loads(tokenizer.to_str())
    words = state["model"]["vocab"]
    words.update({f"<unused {number}>": number for number in range(len(words), n_rows)})
    return json.dumps(state)
