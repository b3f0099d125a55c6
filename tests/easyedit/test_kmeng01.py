"""kmeng01/rome's function: what is edited, what is copied, and what comes back."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import same_bits, state

from rome_fast.errors import HparamsError
from rome_fast.kmeng01 import ROMEHyperParams, apply_rome_to_model

REQUEST = {
    "prompt": "{} is in the city of",
    "subject": "The Eiffel Tower",
    "target_new": {"str": "Rome"},
    "target_true": {"str": "Paris"},
}


@pytest.fixture
def settings(tmp_path):
    """A file of the reference's, read as it reads them."""
    fields = {
        "layers": [1],
        "fact_token": "subject_last",
        "v_num_grad_steps": 6,
        "v_lr": 0.3,
        "v_loss_layer": 3,
        "v_weight_decay": 1e-3,
        "clamp_norm_factor": 12,
        "kl_factor": 0.0625,
        "mom2_adjustment": False,
        "context_template_length_params": [[3, 2]],
        "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
        "mom2_dataset": "wikipedia",
        "mom2_n_samples": 100000,
        "mom2_dtype": "float32",
    }
    path = tmp_path / "gpt2.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    return ROMEHyperParams.from_json(path)


def test_the_model_itself_is_edited_and_the_original_weight_comes_back(gpt2, settings):
    model, tok = gpt2
    before = state(model)
    edited, originals = apply_rome_to_model(
        model, tok, [REQUEST], settings, return_orig_weights=True
    )
    assert edited is model
    [(name, weight)] = originals.items()
    assert name == "transformer.h.1.mlp.c_proj.weight" and torch.equal(weight, before[name])
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == [name]


def test_a_copy_leaves_the_model_alone(gpt2, settings):
    model, tok = gpt2
    before = state(model)
    edited, originals = apply_rome_to_model(model, tok, [REQUEST, REQUEST], settings, copy=True)
    assert edited is not model and originals == {}
    assert same_bits(model, before) and not same_bits(edited, before)


def test_other_settings_are_refused(gpt2):
    with pytest.raises(HparamsError, match="must be ROMEHyperParams, got dict"):
        apply_rome_to_model(*gpt2, [REQUEST], {})
