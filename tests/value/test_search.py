"""Where the suffix cannot be had, or is wrong, the whole model is searched, and that is said."""

from __future__ import annotations

import pytest
import torch
from helpers import REQUEST
from prepared import prepared, two_edits

import rome_fast
from rome_fast.model.precision import TF32_TOLERANCE, is_tf32
from rome_fast.model.spec import ModelSpec
from rome_fast.value.search import Search, WholeModel


def expected_of(model, projection, batch):
    return WholeModel(ModelSpec.of(model), projection, batch).logits(torch.zeros(2, 32))


def test_a_tail_that_is_right_is_kept():
    batch = two_edits()
    model, projection, first = prepared("Llama", 1, batch)
    search = Search(ModelSpec.of(model), projection, batch, first)
    torch.testing.assert_close(
        search.logits(torch.zeros(2, 32)), expected_of(model, projection, batch)
    )
    assert not search.obstacle


@pytest.mark.parametrize("damage", ["values", "positions"])
def test_a_tail_that_is_wrong_is_found_out(damage, monkeypatch):
    """A cache that another version fills otherwise, positions that a model counts otherwise."""
    batch = two_edits()
    model, projection, first = prepared("Llama", 1, batch)
    if damage == "values":
        first.attention[1][1].mul_(1.1)
    else:
        own = model.forward
        monkeypatch.setattr(model, "forward", lambda position_ids=None, **inputs: own(**inputs))
    search = Search(ModelSpec.of(model), projection, batch, first)
    logits = search.logits(torch.zeros(2, 32))
    assert "off by" in search.obstacle
    torch.testing.assert_close(logits, expected_of(model, projection, batch))


def test_a_model_without_a_cache_is_edited_all_the_same(tiny, settings, monkeypatch):
    model, tok = tiny
    with rome_fast.trial(model, tok, REQUEST, **settings) as usual:
        pass
    assert not any("whole model" in text for text in usual.warnings)
    own = model.forward

    def without_cache(input_ids, attention_mask=None, use_cache=None):
        return own(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    monkeypatch.setattr(model, "forward", without_cache)
    with (
        pytest.warns(rome_fast.errors.EditWarning, match="whole model"),
        rome_fast.trial(model, tok, REQUEST, **settings) as slow,
    ):
        pass
    assert slow.losses == pytest.approx(usual.losses, rel=1e-4)
    torch.testing.assert_close(slow.update.dense(), usual.update.dense(), rtol=1e-3, atol=1e-5)


def test_lack_of_memory_is_not_taken_for_an_obstacle(monkeypatch):
    batch = two_edits()
    model, projection, first = prepared("Llama", 1, batch)
    search = Search(ModelSpec.of(model), projection, batch, first)

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        search.logits(torch.zeros(2, 32))


def test_tf32_has_a_tolerance_of_its_own():
    """Its products are off by 3.7e-4 of their norm, and every step would run the whole model."""
    card, cpu = torch.device("cuda"), torch.device("cpu")
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision, expected in (("tf32", True), ("ieee", False)):
            torch.backends.cuda.matmul.fp32_precision = precision
            assert is_tf32(card, torch.float32) is expected
            assert not any(is_tf32(card, d) for d in (torch.float64, torch.bfloat16))
            assert not is_tf32(cpu, torch.float32)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert TF32_TOLERANCE > 3.7e-4


@pytest.mark.parametrize(("tf32", "off"), [(True, 1e-3), (False, 1e-3), (True, 1e-2)])
def test_a_tail_as_exact_as_tf32_is_kept_where_that_is_what_multiplies(tf32, off, monkeypatch):
    batch = two_edits()
    model, projection, first = prepared("Llama", 1, batch)
    search = Search(ModelSpec.of(model), projection, batch, first)
    monkeypatch.setattr("rome_fast.value.search.is_tf32", lambda *_: tf32)
    logits = search.unmoved_logits * (1 + off)
    if tf32 and off < TF32_TOLERANCE:
        search.check(logits)
    else:
        with pytest.raises(ValueError, match="off by"):
            search.check(logits)
