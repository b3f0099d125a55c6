"""SecondMoment against float64 linear algebra, its files, and what edit() makes of texts."""

from __future__ import annotations

import pytest
import torch
from helpers import CONTEXTS, REQUEST

import rome_fast
from rome_fast.collect import collect_second_moment
from rome_fast.collect.sampled import KEYS_PER_DIM, cache_dir, sampled_second_moment
from rome_fast.errors import InvalidArgumentError, SecondMomentError
from rome_fast.key import capture
from rome_fast.models import ModelSpec
from rome_fast.moments import SecondMoment

TEXTS = ["The Eiffel Tower is in the city of Paris.", "He is a man.", "A river and a bridge."]


@pytest.fixture
def keys():
    generator = torch.Generator().manual_seed(7)
    mixing = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    return torch.randn(200, 24, generator=generator, dtype=torch.float64) @ mixing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_add_in_parts_with_mask_equals_the_mean(keys, dtype):
    moment = SecondMoment(24, dtype=dtype)
    mask = torch.arange(200).reshape(2, 100) % 3 > 0
    moment.add(keys.reshape(2, 100, 24).to(dtype), mask)
    moment.add(keys[:50].to(dtype))
    kept = torch.cat([keys[mask.flatten()], keys[:50]])
    expected = kept.T @ kept / len(kept)
    assert moment.count == len(kept)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(moment.moment().double(), expected, rtol=tolerance, atol=tolerance)


def test_merge_equals_adding_all(keys):
    both, first, second = (SecondMoment(24) for _ in range(3))
    both.add(keys)
    first.add(keys[:80])
    second.add(keys[80:])
    first.merge(second)
    torch.testing.assert_close(first.moment(), both.moment())
    assert first.count == both.count == 200
    with pytest.raises(SecondMomentError, match="d_key 24 and 3"):
        first.merge(SecondMoment(3))


def test_solve_against_a_dense_inverse(keys):
    moment = SecondMoment(24)
    moment.add(keys)
    inverse = torch.linalg.inv(keys.T @ keys / 200)
    torch.testing.assert_close(moment.solve(keys[3]), inverse @ keys[3], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(moment.solve(keys[:5]), keys[:5] @ inverse, rtol=1e-7, atol=1e-9)
    assert moment.jitter == 0.0
    # New keys must reach the factor.
    moment.add(100 * keys[:1])
    assert not torch.allclose(moment.solve(keys[3]), inverse @ keys[3])


def test_damping_is_a_ridge_on_the_mean_eigenvalue(keys):
    plain, damped = SecondMoment(24), SecondMoment(24, damping=0.5)
    for moment in (plain, damped):
        moment.add(keys)
    c = plain.moment()
    ridge = c + 0.5 * c.trace() / 24 * torch.eye(24)
    torch.testing.assert_close(damped.solve(keys[0]), torch.linalg.solve(ridge, keys[0]))


def test_singular_moment_gets_jitter_and_says_so(keys):
    moment = SecondMoment(24)
    moment.add(keys[:10])
    assert torch.isfinite(moment.solve(keys[0])).all()
    assert moment.jitter > 0


def test_unusable_moments():
    with pytest.raises(SecondMomentError, match="empty"):
        SecondMoment(4).factor()
    zero = SecondMoment.from_moment(torch.zeros(4, 4), 10)
    with pytest.raises(SecondMomentError, match="zero or not finite"):
        zero.factor()
    broken = SecondMoment.from_moment(torch.full((4, 4), float("nan")), 10)
    with pytest.raises(SecondMomentError, match="not finite"):
        broken.factor()
    skewed = torch.eye(3) + torch.ones(3, 3).triu(1)
    with pytest.raises(InvalidArgumentError, match=r"symmetric, but differs .* by 1"):
        SecondMoment.from_moment(skewed, 10)
    indefinite = SecondMoment.from_moment(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 10)
    with pytest.raises(SecondMomentError, match=r"d_key 2\) of 10 keys is singular"):
        indefinite.factor()
    with pytest.raises(InvalidArgumentError, match="square"):
        SecondMoment.from_moment(torch.zeros(3, 4), 10)
    with pytest.raises(InvalidArgumentError, match="count"):
        SecondMoment.from_moment(torch.eye(3), 0)
    with pytest.raises(InvalidArgumentError, match="float16"):
        SecondMoment(3, dtype=torch.float16)
    with pytest.raises(InvalidArgumentError, match="damping"):
        SecondMoment(3, damping=-1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_and_load_keep_every_bit(keys, tmp_path, dtype):
    moment = SecondMoment(24, dtype=dtype, damping=0.25, source="a test")
    moment.info = {"weight": "x"}
    moment.add(keys.to(dtype))
    moment.save(tmp_path / "deep" / "c.safetensors")
    again = SecondMoment.load(tmp_path / "deep" / "c.safetensors")
    assert torch.equal(again.moment(), moment.moment())
    for name in ("count", "damping", "source", "info"):
        assert getattr(again, name) == getattr(moment, name)
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["c.safetensors"]


def test_collect_texts_sees_every_token_once(tiny):
    model, tok = tiny
    projection = ModelSpec.of(model).down_projection(1)
    moment = collect_texts(model, tok, projection, TEXTS, torch.float64)
    expected, n_keys = 0.0, 0
    for text in TEXTS:
        ids = tok(text, return_tensors="pt").input_ids
        keys, _ = capture(model, projection, ids, torch.ones_like(ids))
        expected = expected + keys[0].double().T @ keys[0].double()
        n_keys += ids.numel()
    assert moment.count == n_keys
    torch.testing.assert_close(moment.moment(), expected / n_keys, rtol=1e-4, atol=1e-5)
    assert moment.source == f"{n_keys} keys of 3 texts"


def test_long_texts_are_cut_at_what_the_model_takes(gpt2):
    model, tok = gpt2
    projection = ModelSpec.of(model).down_projection(1)
    assert collect_texts(model, tok, projection, ["He is a man. " * 100]).count == 128


def test_sampled_moment_is_cached_by_the_weights_below(gpt2, monkeypatch, tmp_path):
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path))
    model, tok = gpt2
    projection = ModelSpec.of(model).down_projection(0)
    first = sampled_second_moment(model, tok, projection)
    assert first.count >= KEYS_PER_DIM * projection.d_key
    again = sampled_second_moment(model, tok, projection)
    assert torch.equal(first.moment(), again.moment()) and again.source.endswith(", cached")
    with torch.no_grad():
        projection.weight.add_(1.0)
        model.transformer.h[2].mlp.c_fc.weight.add_(1.0)
    assert sampled_second_moment(model, tok, projection).source.endswith(", cached")
    assert len(list((cache_dir() / "second_moments").iterdir())) == 1
    before = model_fingerprint(model, projection)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.add_(1e-3)
    assert model_fingerprint(model, projection) != before


def test_fingerprint_covers_the_norms_of_the_block(tiny):
    """Llama registers a block's norms after its MLP."""
    model, _ = tiny
    llama = model.config.model_type == "llama"
    spec = ModelSpec.of(model)
    projection = spec.down_projection(1)
    before = model_fingerprint(model, projection)
    with torch.no_grad():
        projection.weight.mul_(2)
        spec.blocks[2].get_parameter("mlp.up_proj.weight" if llama else "mlp.c_fc.weight").mul_(2)
    assert model_fingerprint(model, projection) == before
    with torch.no_grad():
        norm = "input_layernorm.weight" if llama else "ln_2.weight"
        spec.blocks[1].get_parameter(norm).mul_(1.1)
    assert model_fingerprint(model, projection) != before


def test_cache_that_cannot_be_written_or_read_loses_nothing(gpt2, monkeypatch, tmp_path):
    model, tok = gpt2
    projection = ModelSpec.of(model).down_projection(0)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path / "file"))
    moment = sampled_second_moment(model, tok, projection)
    assert moment.count and "set ROME_FAST_CACHE" in moment.source
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path / "good"))
    sampled_second_moment(model, tok, projection)
    (file,) = (tmp_path / "good" / "second_moments").iterdir()
    file.write_bytes(b"damaged")
    again = sampled_second_moment(model, tok, projection)
    assert torch.equal(again.moment(), moment.moment()) and "cached" not in again.source


def test_sampled_rows_begin_as_texts_do(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path))
    model, tok = tiny
    seen = []

    def add_rows(moment, model, projection, rows):
        seen.extend(rows)
        moment.count += 10**9

    monkeypatch.setattr("rome_fast.collect._add_rows", add_rows)
    sampled_second_moment(model, tok, ModelSpec.of(model).down_projection(0))
    assert {row[0] == tok.bos_token_id for row in seen} == {model.config.model_type == "llama"}
    assert {len(row) for row in seen} == {64}


def test_edit_names_its_second_moment(gpt2, hparams, tmp_path):
    model, tok = gpt2
    projection = ModelSpec.of(model).down_projection(1)
    moment = collect_texts(model, tok, projection, TEXTS)
    moment.save(tmp_path / "c.safetensors")
    sources = {
        "identity": "identity",
        None: "text sampled from the model",
        tmp_path / "c.safetensors": "file c.safetensors",
        str(tmp_path / "c.safetensors"): "file c.safetensors",
        moment: "keys of 3 texts",
        tuple(TEXTS): "keys of 3 texts",
    }
    for given, expected in sources.items():
        with rome_fast.trial(
            model, tok, REQUEST, hparams, second_moment=given, context_templates=CONTEXTS
        ) as result:
            assert expected in result.second_moment


def test_moment_of_another_layer_or_model_is_refused(gpt2, hparams):
    model, tok = gpt2
    moment = collect_texts(model, tok, ModelSpec.of(model).down_projection(2), TEXTS)
    options = {"second_moment": moment, "context_templates": CONTEXTS}
    with pytest.raises(SecondMomentError, match=r"collected at transformer\.h\.2\.mlp\.c_proj"):
        rome_fast.edit(model, tok, REQUEST, hparams, **options)
    options["second_moment"] = collect_texts(
        model, tok, ModelSpec.of(model).down_projection(1), TEXTS
    )
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight.mul_(1.5)
    with pytest.raises(SecondMomentError, match="other weights below"):
        rome_fast.edit(model, tok, REQUEST, hparams, **options)


def test_identity_through_hparams_is_said(gpt2, hparams):
    model, tok = gpt2
    with pytest.warns(rome_fast.errors.EditWarning, match="mom2_adjustment is false"):
        result = rome_fast.edit(
            model, tok, REQUEST, hparams.replace(mom2_adjustment=False), context_templates=CONTEXTS
        )
    assert result.second_moment == "identity"
