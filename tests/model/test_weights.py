"""Matrices that cannot be edited as they are: made anew at each forward, or of several layers."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from helpers import REQUEST, same_bits, state
from torch.nn.utils import (
    parametrizations,
    parametrize,
    prune,
    remove_spectral_norm,
    remove_weight_norm,
    spectral_norm,
    weight_norm,
)

import rome_fast
from rome_fast.errors import UnsupportedModelError
from rome_fast.model.spec import ModelSpec


def pruned(module):
    return prune.random_unstructured(module, "weight", amount=0.1)


def pruned_twice(module):
    return pruned(pruned(module))


def unprune(module):
    prune.remove(module, "weight")


def unparametrize(module):
    parametrize.remove_parametrizations(module, "weight")


# (what is put on the matrix, what takes it off)
REBUILT = {
    "prune": (pruned, unprune),
    "prune twice": (pruned_twice, unprune),
    "old weight_norm": (weight_norm, remove_weight_norm),
    "old spectral_norm": (spectral_norm, remove_spectral_norm),
    "weight_norm": (parametrizations.weight_norm, unparametrize),
    "spectral_norm": (parametrizations.spectral_norm, unparametrize),
    "orthogonal": (parametrizations.orthogonal, unparametrize),
}


def down_projection(model, layer=1):
    return ModelSpec.of(model).down_projection(layer).module


@pytest.mark.parametrize("kind", REBUILT)
def test_a_matrix_that_is_made_anew_is_refused_with_its_cure(tiny, settings, kind):
    model, tok = tiny
    put_on, take_off = REBUILT[kind]
    module = down_projection(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        put_on(module)
    before = state(model)
    with pytest.raises(UnsupportedModelError, match=take_off.__name__.removeprefix("un")):
        rome_fast.edit(model, tok, REQUEST, **settings)
    assert same_bits(model, before)
    take_off(module)
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    assert result.update_norm > 0 and isinstance(module.weight, torch.nn.Parameter)


def test_a_matrix_of_two_layers_is_refused(tiny, settings):
    model, tok = tiny
    module = down_projection(model)
    down_projection(model, 2).weight = module.weight
    before = state(model)
    with pytest.raises(UnsupportedModelError, match="also the matrix of layer 2"):
        rome_fast.edit(model, tok, REQUEST, **settings)
    assert same_bits(model, before)
    module.weight = torch.nn.Parameter(module.weight.detach().clone())
    rome_fast.edit(model, tok, REQUEST, **settings)
    assert not torch.equal(module.weight, down_projection(model, 2).weight)
    assert torch.equal(down_projection(model, 2).weight, before_of(before, model, 2))


def before_of(before, model, layer):
    name = ModelSpec.of(model).down_projection(layer).name
    return before[f"{name}.weight"]


def test_a_model_made_under_inference_mode_is_refused_and_left_as_it_was(tiny, settings):
    model, tok = tiny
    model.train()
    with torch.inference_mode():
        made = copy.deepcopy(model)
        with pytest.raises(UnsupportedModelError, match=r"made under torch.inference_mode\(\)"):
            rome_fast.edit(made, tok, REQUEST, **settings)
    assert all(module.training for module in made.modules())
    assert all(parameter.requires_grad for parameter in made.parameters())
    assert same_bits(made, state(model))


@pytest.mark.parametrize("part", ["block", "mlp"])
def test_a_module_that_stands_in_two_places_is_refused(tiny, settings, part):
    model, tok = tiny
    blocks = model.get_submodule(ModelSpec.of(model).blocks_name)
    if part == "block":
        blocks[2] = blocks[1]
    else:
        blocks[2].mlp = blocks[1].mlp
    with pytest.raises(UnsupportedModelError, match="also the matrix of layer 2"):
        rome_fast.edit(model, tok, REQUEST, **settings)
