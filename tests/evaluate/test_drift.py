"""Perplexity and KL of held texts against two models side by side."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from families import FAMILIES, lively_family
from helpers import same_bits, state
from structures import STRUCTURES
from tiny import SENTENCES, tiny_gpt2

from rome_fast.errors import InvalidArgumentError, NonFiniteError
from rome_fast.evaluate import drift, scoring
from rome_fast.evaluate.drift import Drift
from rome_fast.model.spec import ModelSpec

TEXTS = [SENTENCES[0], "Tea", " ".join(SENTENCES[1:4])]


@torch.no_grad()
def plain(model, other, tok, texts, window=None):
    """(perplexity under model, KL(model || other)), one unpadded forward a window."""
    nll, kl = [], []
    for text in texts:
        ids = tok(text)["input_ids"]
        size = window or len(ids)
        for start in range(0, len(ids) - 1, max(size - 1, 1)):
            row = torch.tensor([ids[start : start + size]])
            p, q = (m(row).logits[0, :-1].double().softmax(1) for m in (model, other))
            nll += [-math.log(p[i, token]) for i, token in enumerate(row[0, 1:].tolist())]
            kl += (p * (p / q).log()).sum(1).tolist()
    return math.exp(sum(nll) / len(nll)), sum(kl) / len(kl)


def edited(model, layer=1, scale=0.02):
    """A copy with a rank-one change of one down-projection."""
    other = copy.deepcopy(model)
    weight = ModelSpec.of(other).down_projection(layer).weight
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, generator=generator) for n in weight.shape)
    with torch.no_grad():
        weight.add_(scale * a.to(weight)[:, None] * b.to(weight))
    return other


@pytest.mark.covering
@pytest.mark.parametrize("n_tokens", [1, 30, 4096])
def test_drift_is_that_of_two_models_side_by_side(tiny, monkeypatch, n_tokens):
    model, tok = tiny
    monkeypatch.setattr(scoring, "BATCH_TOKENS", {"cpu": n_tokens})
    before = state(model)
    measured = Drift.baseline(model, tok, TEXTS)
    other = edited(model)
    perplexity, kl = plain(other, model, tok, TEXTS)
    found = measured.measure(other)
    assert found["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    assert kl > 1e-3 and found["kl"] == pytest.approx(kl, rel=1e-3)
    assert same_bits(model, before)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_an_unedited_model_has_not_drifted(tiny):
    model, tok = tiny
    found = Drift.baseline(model, tok, TEXTS).measure(model)
    assert found["kl"] == pytest.approx(0, abs=1e-12)
    assert found["perplexity"] == pytest.approx(plain(model, model, tok, TEXTS)[0], rel=1e-5)


def test_a_long_text_is_read_in_windows_that_predict_every_token_once(gpt2, monkeypatch):
    model, tok = gpt2
    monkeypatch.setattr(drift, "WINDOW", 7)
    measured = Drift.baseline(model, tok, TEXTS)
    n_tokens = [len(tok(text)["input_ids"]) for text in TEXTS]
    assert sum(len(x) for x in measured.hidden) == sum(n - 1 for n in n_tokens)
    assert max(len(row) for part in measured.windows for row in part) == 7
    other = edited(model)
    perplexity, kl = plain(other, model, tok, TEXTS, window=7)
    found = measured.measure(other)
    assert found["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    assert found["kl"] == pytest.approx(kl, rel=1e-3)


def test_a_text_longer_than_the_model_takes_is_read_in_windows(gpt2):
    model, tok = gpt2
    text = " ".join(SENTENCES * 2)
    assert len(tok(text)["input_ids"]) > model.config.n_positions
    assert 1 < Drift.baseline(model, tok, [text]).measure(model)["perplexity"] < math.inf


@pytest.mark.covering(family=STRUCTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_both_models_logits(family):
    """Soft caps and scales after the head are the model's own."""
    model, (_, tok) = lively_family(family, 420), tiny_gpt2()
    text = "The Eiffel Tower is in the city of Paris."
    measured = Drift.baseline(model, tok, [text])
    other = edited(model, scale=0.5)
    perplexity, kl = plain(other, model, tok, [text])
    found = measured.measure(other)
    assert found["perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert kl > 1e-5 and found["kl"] == pytest.approx(kl, rel=1e-2)


@pytest.mark.parametrize("texts", [[], [""], ["A"]])
def test_texts_without_a_token_to_predict_are_an_error(gpt2, texts):
    with pytest.raises(InvalidArgumentError, match="held_texts must have a token after another"):
        Drift.baseline(*gpt2, texts)


def test_logits_that_are_not_finite_are_an_error(gpt2):
    model, tok = gpt2
    measured = Drift.baseline(model, tok, TEXTS)
    with torch.no_grad():
        model.transformer.h[2].mlp.c_proj.bias[0] = float("inf")
    with pytest.raises(NonFiniteError, match="logits are NaN or infinite"):
        measured.measure(model)
    assert not model.get_output_embeddings()._forward_pre_hooks
