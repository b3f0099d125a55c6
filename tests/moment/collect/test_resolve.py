"""What `second_moment=` of edit() may be, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from helpers import CONTEXTS, REQUEST

import rome_fast
from rome_fast.errors import SecondMomentError
from rome_fast.moment.collect.collector import collect_second_moment


def collected(model, tok, texts, layer):
    return collect_second_moment(model, tok, texts, layer, progress=False)[layer]


def test_edit_names_its_second_moment(gpt2, hparams, texts, tmp_path):
    model, tok = gpt2
    texts = texts * 3
    moment = collected(model, tok, texts, 1)
    moment.save(tmp_path / "c.safetensors")
    moment.info["sample_size"] = 12
    moment.save(tmp_path / "c.npz")
    sources = {
        "identity": "identity",
        None: "1,024 keys of ordinary text",
        tmp_path / "c.safetensors": "file c.safetensors",
        str(tmp_path / "c.safetensors"): "file c.safetensors",
        tmp_path / "c.npz": "file c.npz",
        moment: "keys of texts given by the caller",
        tuple(texts): "keys of texts given by the caller",
    }
    for given, expected in sources.items():
        with rome_fast.trial(
            model, tok, REQUEST, hparams, second_moment=given, context_templates=CONTEXTS
        ) as result:
            assert expected in result.second_moment


def test_moment_of_another_layer_or_model_is_refused(gpt2, hparams, texts, tmp_path):
    model, tok = gpt2
    options = {"context_templates": CONTEXTS}
    with pytest.raises(
        SecondMomentError,
        match=r"the module differs: transformer\.h\.2\.mlp\.c_proj there, transformer\.h\.1",
    ):
        moment = collected(model, tok, texts, 2)
        rome_fast.edit(model, tok, REQUEST, hparams, second_moment=moment, **options)
    collected(model, tok, texts, 1).save(tmp_path / "c.safetensors")
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight.mul_(1.5)
    with pytest.raises(SecondMomentError, match=r"the weights below the layer .* differs: "):
        rome_fast.edit(
            model, tok, REQUEST, hparams, second_moment=tmp_path / "c.safetensors", **options
        )


def test_moment_survives_an_edit_at_its_layer(gpt2, settings, texts):
    """Keys do not depend on the edited weight."""
    model, tok = gpt2
    settings["second_moment"] = collected(model, tok, texts, 1)
    rome_fast.edit(model, tok, REQUEST, **settings)
    rome_fast.edit(model, tok, {**REQUEST, "target_new": "river"}, **settings)


def test_identity_through_hparams_is_said(gpt2, hparams):
    model, tok = gpt2
    with pytest.warns(rome_fast.errors.EditWarning, match="mom2_adjustment is false"):
        result = rome_fast.edit(
            model, tok, REQUEST, hparams.replace(mom2_adjustment=False), context_templates=CONTEXTS
        )
    assert result.second_moment == "identity"
