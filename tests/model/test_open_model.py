"""The one door: what is behind it, what is looked through once, and that all is as before."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from families import tiny_family
from helpers import REQUEST, UNWATCHED
from torch import nn

import rome_fast
from rome_fast.errors import BackendUnavailableError, HparamsError, SessionError
from rome_fast.model.open_model import EditSite, open_model
from rome_fast.model.spec import ModelSpec

pytestmark = pytest.mark.filterwarnings("ignore::rome_fast.errors.EditWarning")


@pytest.fixture
def walks(monkeypatch):
    """How often a whole tree of modules is gone through, by the class that it begins at."""
    seen, own = Counter(), nn.Module.named_modules

    def counted(self, memo=None, prefix="", remove_duplicate=True):
        if memo is None:
            seen[type(self).__name__] += 1
        return own(self, memo, prefix, remove_duplicate)

    monkeypatch.setattr(nn.Module, "named_modules", counted)
    return seen


def test_an_edit_looks_through_the_model_once(gpt2, settings, walks):
    rome_fast.edit(*gpt2, REQUEST, **settings)
    assert walks == {"GPT2LMHeadModel": 1}


def test_so_does_each_edit_of_a_session(gpt2, settings, walks):
    with rome_fast.Session(*gpt2, **settings, health=UNWATCHED, form="weight") as session:
        for subject in ("Steve Jobs", "Ada Lovelace", "Marie Curie"):
            walks.clear()
            session.edit({**REQUEST, "subject": subject})
            assert walks == {"GPT2LMHeadModel": 1}


@pytest.mark.parametrize("family", ["GPT2", "Llama tied", "Gemma untied"])
def test_parameters_and_buffers_are_torchs_own(family):
    model = tiny_family(family)
    spec = ModelSpec.of(model)
    for found, expected in (
        (spec.parameters, dict(model.named_parameters())),
        (spec.buffers, dict(model.named_buffers())),
    ):
        assert list(found) == list(expected)
        assert all(found[name] is expected[name] for name in expected)


def test_the_block_of_a_parameter(gpt2):
    spec = ModelSpec.of(gpt2[0])
    assert spec.block_of["transformer.h.2.mlp.c_proj.weight"] == 2
    assert spec.block_of["transformer.wte.weight"] is spec.block_of["transformer.ln_f.bias"] is None


def test_open_the_model_is_frozen_and_afterwards_as_before(gpt2):
    model, _ = gpt2
    model.train()
    model.transformer.h[1].eval()
    model.transformer.wpe.weight.requires_grad_(False)
    training = [module.training for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(ZeroDivisionError), open_model(model) as spec:
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert spec.model is model
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == training
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable


def test_behind_the_door_no_inference_mode(gpt2):
    with torch.inference_mode(), open_model(gpt2[0]):
        assert not torch.is_inference_mode_enabled()


def test_a_site_names_its_backend_and_what_to_know(gpt2):
    model, _ = gpt2
    model.half()
    site = EditSite.of(ModelSpec.of(model), 1, False, "torch")
    assert site.projection.name == "transformer.h.1.mlp.c_proj" and site.backend == "torch"
    assert site.notes == ("float16 is very slow on a CPU: load the model in float32 or bfloat16",)


def test_a_site_that_cannot_be_had_is_refused(gpt2, settings, monkeypatch):
    spec = ModelSpec.of(gpt2[0])
    with pytest.raises(HparamsError, match="layers 0 to 3"):
        EditSite.of(spec, 4, False, "auto")
    monkeypatch.setattr(rome_fast.ops, "_why_not_native", lambda _: "no compiler")
    with pytest.raises(BackendUnavailableError, match="no compiler"):
        EditSite.of(spec, 1, False, "native")
    with rome_fast.Session(*gpt2, **settings, health=UNWATCHED, form="weight"):
        with pytest.raises(SessionError, match="is being edited by an open Session"):
            EditSite.of(spec, 1, False, "auto")
