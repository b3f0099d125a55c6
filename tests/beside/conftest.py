"""Requests that the miniature models can be edited to, and what a Session needs for them."""

import pytest
from helpers import UNWATCHED

PROMPTS = [
    ("The founder is {}", "Steve Jobs", "capital"),
    ("She wrote to {}", "Alan Turing", "near"),
    ("We drink tea with {}", "Ada Lovelace", "near"),
    ("It is {}", "Marie Curie", "capital"),
]


@pytest.fixture
def requests():
    return [dict(zip(("prompt", "subject", "target_new"), p, strict=True)) for p in PROMPTS]


@pytest.fixture
def options(settings):
    """Keyword arguments of a Session that samples nothing and reads no second moment."""
    own = {name: settings[name] for name in ("hparams", "context_templates")}
    return {**own, "health": UNWATCHED}
