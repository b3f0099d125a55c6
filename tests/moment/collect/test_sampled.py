"""The second moment of text that the model writes, and its cache."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from rome_fast.errors import SecondMomentError
from rome_fast.model.spec import ModelSpec
from rome_fast.moment.collect.sampled import cache_dir, sampled_documents, sampled_second_moment


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path))
    return tmp_path / "second_moments"


def test_sampled_moment_is_cached_by_all_that_determines_it(gpt2, cache):
    model, tok = gpt2
    projection = ModelSpec.of(model).down_projection(0)
    first = sampled_second_moment(ModelSpec.of(model), tok, projection)
    assert first.info["convergence"]["converged"]
    again = sampled_second_moment(ModelSpec.of(model), tok, projection)
    assert torch.equal(first.moment(), again.moment()) and again.source.endswith(", cached")
    with torch.no_grad():
        projection.weight.add_(1.0)
        model.transformer.h[2].mlp.c_fc.weight.add_(1.0)
    assert sampled_second_moment(ModelSpec.of(model), tok, projection).source.endswith(", cached")
    assert len(list(cache.iterdir())) == 1
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.add_(1e-3)
    assert "cached" not in sampled_second_moment(ModelSpec.of(model), tok, projection).source
    tok.add_tokens(["<new>"])
    model.resize_token_embeddings(len(tok))
    assert "cached" not in sampled_second_moment(ModelSpec.of(model), tok, projection).source
    assert len(list(cache.iterdir())) == 3


def test_cache_that_cannot_be_written_loses_nothing(gpt2, monkeypatch, tmp_path):
    model, tok = gpt2
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path / "file"))
    moment = sampled_second_moment(ModelSpec.of(model), tok, ModelSpec.of(model).down_projection(0))
    assert moment.count and "set ROME_FAST_CACHE" in moment.source


def test_damaged_cache_is_an_error_that_names_the_file(gpt2, cache):
    model, tok = gpt2
    projection = ModelSpec.of(model).down_projection(0)
    sampled_second_moment(ModelSpec.of(model), tok, projection)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(SecondMomentError, match=rf"{file.name}.*delete this file of the cache"):
        sampled_second_moment(ModelSpec.of(model), tok, projection)
    file.unlink()
    assert "cached" not in sampled_second_moment(ModelSpec.of(model), tok, projection).source


def test_cache_lies_in_the_platforms_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("ROME_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir().name == "rome_fast" and tmp_path in cache_dir().parents


def test_sampled_documents_begin_as_texts_do_and_repeat(tiny):
    model, tok = tiny
    rows = list(islice(sampled_documents(model, tok), 70))
    assert {row[0] == tok.bos_token_id for row in rows} == {model.config.model_type == "llama"}
    assert {len(row) for row in rows} == {64}
    assert list(islice(sampled_documents(model, tok), 70)) == rows
    assert rows[:5] != rows[64:69]


def test_number_of_texts_is_a_bound_that_convergence_may_stay_below(gpt2, cache):
    model, tok = gpt2
    projection = ModelSpec.of(model).down_projection(0)
    few = sampled_second_moment(ModelSpec.of(model), tok, projection, n_texts=3)
    assert few.count == 3 * 64 and not few.info["convergence"]["converged"]
    assert sampled_second_moment(ModelSpec.of(model), tok, projection, n_texts=3).source.endswith(
        ", cached"
    )
    many = sampled_second_moment(ModelSpec.of(model), tok, projection, n_texts=10_000)
    assert few.count < many.count < 10_000 * 64 and "cached" not in many.source
    free = sampled_second_moment(ModelSpec.of(model), tok, projection)
    assert free.source.endswith(", cached") and torch.equal(free.moment(), many.moment())
    again = sampled_second_moment(ModelSpec.of(model), tok, projection, n_texts=3)
    assert again.count == few.count, "a converged one in the cache is beyond the bound"
    assert len(list(cache.iterdir())) == 2
