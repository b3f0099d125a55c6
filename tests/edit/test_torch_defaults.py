"""A default device or dtype, or an autocast, that the user has set is none of ours."""

from __future__ import annotations

import pytest
import torch
from helpers import REQUEST

import rome_fast

TEXTS = ["The founder is Steve Jobs, who was here.", "We drink tea with Ada Lovelace."] * 40


@pytest.fixture
def elsewhere():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def test_edits_are_the_same(tiny, settings, elsewhere):
    model, tok = tiny
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    result.revert()
    torch.set_default_device(None)
    again = rome_fast.edit(model, tok, REQUEST, **settings)
    assert torch.equal(result.update.u, again.update.u) and result.losses == again.losses


def test_all_else_runs(gpt2, settings, hparams, tmp_path, elsewhere):
    model, tok = gpt2
    [moment] = rome_fast.collect_second_moment(model, tok, TEXTS, 1, progress=False).values()
    moment.save(tmp_path / "c.safetensors")
    loaded = rome_fast.SecondMoment.load(tmp_path / "c.safetensors")
    assert torch.equal(loaded.moment(), moment.moment())
    options = {**settings, "second_moment": loaded}
    with rome_fast.Session(model, tok, **options, journal=tmp_path / "j", form="weight") as session:
        assert session.edit(REQUEST).edit_id == 1
        assert session.health().retention is not None
        session.log.save(tmp_path / "log.safetensors")
        session.undo()
    assert len(rome_fast.EditLog.load(tmp_path / "log.safetensors")) == 1
    records = rome_fast.load_records([REQUEST])
    evaluated = rome_fast.evaluate(
        model, tok, records, generate_tokens=3, held_texts=TEXTS[:2], progress=False, **options
    )
    assert evaluated.metrics["after"]["rewrite_acc"].mean >= 0
    rome_fast.locate(
        model, tok, "The founder is Steve Jobs", "Steve Jobs", samples=1, progress=False
    )
    rome_fast.probe(model, tok, REQUEST, layers=[1], progress=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_default_dtype_changes_no_bit(tiny, settings, dtype):
    model, tok = tiny
    wanted = rome_fast.edit(model, tok, REQUEST, **settings)
    wanted.revert()
    torch.set_default_dtype(dtype)
    try:
        result = rome_fast.edit(model, tok, REQUEST, **settings)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(result.update.u, wanted.update.u) and result.losses == wanted.losses


def test_autocast_changes_no_bit(tiny, settings):
    model, tok = tiny
    wanted = rome_fast.edit(model, tok, REQUEST, **settings)
    wanted.revert()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = rome_fast.edit(model, tok, REQUEST, **settings)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(result.update.u, wanted.update.u) and result.losses == wanted.losses
    assert torch.equal(result.update.v, wanted.update.v)
