"""Requests that the miniature models can be edited to, and Sessions that look at no health."""

import pytest

from rome_fast import HealthCheck, Session

PROMPTS = [
    ("The founder is {}", "Steve Jobs", "capital"),
    ("The old tower is {}", "Eiffel Tower", "near"),
    ("We drink tea with {}", "Ada Lovelace", "near"),
    ("It is {}", "Marie Curie", "capital"),
    ("They met {}", "Niels Bohr", "capital"),
    ("She wrote to {}", "Alan Turing", "near"),
]


@pytest.fixture
def requests():
    return [dict(zip(("prompt", "subject", "target_new"), p, strict=True)) for p in PROMPTS]


@pytest.fixture
def options(settings):
    """Keyword arguments of a Session that samples nothing."""
    return {**settings, "health": HealthCheck(every=0)}


@pytest.fixture(params=["joint", "sequential"])
def gpt2_session(request, gpt2, options):
    """(session, model) of the miniature GPT-2, whose weight is edited in either way."""
    model, tok = gpt2
    with Session(model, tok, **options, form="weight", solve=request.param) as session:
        yield session, model
