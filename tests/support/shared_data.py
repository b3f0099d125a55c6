"""Where the real test data lies; tests that need it are skipped where it is absent."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"


def shared(path: str) -> Path:
    """A file or folder of the shared data, or a skip that names it."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"shared test data is not here: {path}")
    return found


def shared_model():
    """stories260K, a real trained Llama of 5 layers, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, __version__

    folder = shared("models/stories260K")
    if int(__version__.split(".")[0]) < 5:
        pytest.skip("transformers 5 wrote the tokenizer of stories260K; 4 cannot read it")
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
