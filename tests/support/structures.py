"""Models of different structures, built once per run, with tokenizers of two kinds."""

from __future__ import annotations

from functools import cache

import pytest
import transformers
from families import lively_family
from tiny import byte_level_tokenizer, metaspace_tokenizer

TOKENIZERS = {"byte-level": byte_level_tokenizer, "metaspace": metaspace_tokenizer}
# Conv1D; rotary; a norm after the MLP; ALiBi; a window of 4 tokens, shorter than every context.
STRUCTURES = {
    "GPT2": "byte-level",
    "Llama": "metaspace",
    "Gemma2": "metaspace",
    "Bloom": "byte-level",
    "Mistral": "metaspace",
}
# Each block above the edited one carries an offset 3 tokens further: two carry it to the target.
CHANGES = {"Gemma2": {"num_hidden_layers": 4}, "Mistral": {"num_hidden_layers": 4}}


@cache
def built(family, tokenizer):
    if family == "Mpt" and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("transformers 4 cannot run MPT in float64, as the oracle does")
    tok = TOKENIZERS[tokenizer]()
    return lively_family(family, len(tok), **CHANGES.get(family, {})), tok
