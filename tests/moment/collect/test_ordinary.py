"""The second moment that an edit takes when it is given none, its cache, and its text."""

from __future__ import annotations

import hashlib

import pytest
import torch
from shared_data import shared
from transformers import PreTrainedTokenizerFast

from rome_fast.cache import cache_dir
from rome_fast.errors import SecondMomentError, SecondMomentWarning
from rome_fast.model.spec import ModelSpec
from rome_fast.moment.collect import ordinary
from rome_fast.moment.collect.collection import ENOUGH_KEYS
from rome_fast.moment.collect.collector import collect_second_moment
from rome_fast.moment.collect.ordinary import (
    ORDINARY_TEXT,
    ordinary_second_moment,
    ordinary_second_moments,
)

# Of the text. Another one gives other bits to every edit without a second moment, and so to every
# log and journal of such edits, and other numbers to every benchmark: it is changed on purpose,
# with a CHANGELOG entry, or not at all.
SHA256 = "a27cb63c92a9454ba510df734a7c191020a136485bf2cf5c5b58c3aecbbb2b5c"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path))
    return tmp_path / "second_moments"


def ordinary_at(model, tok, layer=0, **options):
    spec = ModelSpec.of(model)
    return ordinary_second_moment(spec, tok, spec.down_projection(layer), **options)


def test_it_is_that_of_the_first_few_keys_a_dimension(tiny, cache):
    model, tok = tiny
    moment = ordinary_at(model, tok, 1)
    assert moment.count == moment.info["tokens"] == ENOUGH_KEYS * moment.d_key
    assert moment.source == f"{moment.count:,} keys of ordinary text"
    expected = collect_second_moment(
        model, tok, ORDINARY_TEXT, 1, tokens=moment.count, max_length=256, progress=False
    )[1]
    assert torch.equal(moment.moment(), expected.moment())


def test_more_of_it_is_asked_for_and_cached_apart(gpt2, cache, monkeypatch, tmp_path):
    model, tok = gpt2
    few, many = ordinary_at(model, tok), ordinary_at(model, tok, keys_per_dim=32)
    assert (many.count, many.count / few.count) == (32 * many.d_key, 8)
    assert ordinary_at(model, tok).count == few.count
    short = tmp_path / "short.txt"
    short.write_text("Forty words are all that there is of this text.\n" * 20)
    monkeypatch.setattr(ordinary, "ORDINARY_TEXT", short)
    monkeypatch.setattr(ordinary, "text_hash", ordinary.text_hash.__wrapped__)
    assert ordinary_at(model, tok, keys_per_dim=32).count < 32 * many.d_key


def test_it_is_cached_by_all_that_determines_it(gpt2, cache, monkeypatch, tmp_path):
    model, tok = gpt2
    first, again = ordinary_at(model, tok), ordinary_at(model, tok)
    assert torch.equal(first.moment(), again.moment()) and again.is_cached
    with torch.no_grad():
        ModelSpec.of(model).down_projection(0).weight.add_(1.0)
        model.transformer.h[2].mlp.c_fc.weight.add_(1.0)
    assert ordinary_at(model, tok).is_cached
    assert len(list(cache.iterdir())) == 1
    assert "cached" not in ordinary_at(model, tok, 1).source
    assert "cached" not in ordinary_at(model, tok, dtype=torch.float64).source
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.add_(1e-3)
    assert "cached" not in ordinary_at(model, tok).source
    model.config.layer_norm_epsilon *= 2
    assert "cached" not in ordinary_at(model, tok).source
    tok.add_tokens(["<new>"])
    model.resize_token_embeddings(len(tok))
    assert "cached" not in ordinary_at(model, tok).source
    other = tmp_path / "other.txt"
    other.write_text("Another text of the package.\n" * 400)
    monkeypatch.setattr(ordinary, "ORDINARY_TEXT", other)
    monkeypatch.setattr(ordinary, "text_hash", ordinary.text_hash.__wrapped__)
    assert "cached" not in ordinary_at(model, tok).source
    assert len(list(cache.iterdir())) == 7


def test_layers_that_are_not_cached_share_one_pass(gpt2, cache, monkeypatch):
    model, tok = gpt2
    passes = []

    def counted(model, tok, texts, layers, **options):
        passes.append(layers)
        return collect_second_moment(model, tok, texts, layers, **options)

    monkeypatch.setattr(ordinary, "collect_second_moment", counted)
    alone = ordinary_at(model, tok, 1)
    projections = [ModelSpec.of(model).down_projection(layer) for layer in (2, 1, 0)]
    moments = ordinary_second_moments(ModelSpec.of(model), tok, projections)
    assert passes == [[1], [2, 0]]
    assert torch.equal(moments[1].moment(), alone.moment())
    assert {layer: m.is_cached for layer, m in moments.items()} == {
        0: False, 1: True, 2: False,
    }  # fmt: skip
    again = ordinary_second_moments(ModelSpec.of(model), tok, projections)
    assert len(passes) == 2
    assert all(torch.equal(again[i].moment(), moments[i].moment()) for i in range(3))


def test_cache_that_cannot_be_written_loses_nothing(gpt2, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path / "file"))
    with pytest.warns(SecondMomentWarning, match="not cached.*set ROME_FAST_CACHE"):
        moment = ordinary_at(*gpt2)
    assert moment.count and not moment.is_cached


def test_damaged_cache_is_an_error_that_names_the_file(gpt2, cache):
    ordinary_at(*gpt2)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(SecondMomentError, match=rf"{file.name}.*delete this file of the cache"):
        ordinary_at(*gpt2)
    file.unlink()
    assert not ordinary_at(*gpt2).is_cached


def test_cache_lies_in_the_platforms_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("ROME_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir().name == "rome_fast" and tmp_path in cache_dir().parents


def test_the_text_is_the_one_that_was_studied():
    content = ORDINARY_TEXT.read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256
    assert all(line.strip() for line in content.decode("utf-8").splitlines())


def test_the_text_is_long_enough_for_large_models():
    """Four keys for each of 10,000 dimensions, which models of some billion parameters have."""
    file = shared("tokenizers/gpt2/tokenizer.json")
    tok = PreTrainedTokenizerFast(tokenizer_file=str(file))
    lines = ORDINARY_TEXT.read_text(encoding="utf-8").splitlines()
    assert sum(map(len, tok(lines)["input_ids"])) >= 40_000
