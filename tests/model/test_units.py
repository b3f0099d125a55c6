"""The MLP's hidden units, found by structure in every model that can be edited."""

from __future__ import annotations

import pytest
import torch
from helpers import same_bits, state
from tiny import metaspace_tokenizer
from zoo import ZOO

from rome_fast.errors import UnsupportedModelError
from rome_fast.model.spec import ModelSpec
from rome_fast.model.units import HiddenUnits

# What every family has is seen in tests/neuron, by what a unit more of it does.
QUICK = ("GPT2", "Llama", "Phi3", "Gemma2", "OPT")
CASES = [
    member if member.name in QUICK else pytest.param(member, marks=pytest.mark.exhaustive)
    for member in ZOO
]


def units_of(model, layer=1, shared_expert=False):
    spec = ModelSpec.of(model)
    return spec, HiddenUnits.of(spec, spec.down_projection(layer, shared_expert))


@pytest.mark.parametrize("member", CASES, ids=lambda member: member.name)
def test_they_make_the_keys_that_the_model_makes(member):
    """In float64, to rounding, on other tokens than those that they were found with."""
    model = member.build(len(metaspace_tokenizer()))
    if model is None:
        pytest.skip(f"this transformers has no {member.name}")
    if not member.has_oracle:
        pytest.skip(f"this transformers runs no {member.name} in float64")
    model = model.double()
    before = state(model)
    spec, units = units_of(model, member.layer, member.shared_expert)
    seen = {}
    handles = [
        units.gate.module.register_forward_pre_hook(lambda _, args: seen.update(h=args[0])),
        units.projection.module.register_forward_pre_hook(lambda _, args: seen.update(k=args[0])),
    ]
    spec.model(input_ids=torch.tensor([[5, 9, 11, 3, 8]]), use_cache=False)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(units.keys(seen["h"]), seen["k"], rtol=1e-10, atol=1e-12)
    assert same_bits(model, before)


def test_gated_plain_and_fused_ones_are_told_apart():
    kinds = {}
    for member in ZOO:
        if member.name in ("GPT2", "Llama", "Phi3"):
            _, units = units_of(member.build(60), member.layer)
            up = units.up
            kinds[member.name] = (units.gate.has_bias, units.gate.first, up and up.first)
    # Phi-3 has both maps in one matrix, the gate first.
    assert kinds == {"GPT2": (True, 0, None), "Llama": (False, 0, 0), "Phi3": (False, 0, 48)}


def test_what_is_no_unit_is_refused(tiny):
    """A norm before the edited matrix: what one unit adds depends on all others."""
    model, _ = tiny
    spec = ModelSpec.of(model)
    projection = spec.down_projection(1)
    projection.module.register_forward_pre_hook(
        lambda _, args: (torch.nn.functional.normalize(args[0], dim=-1),)
    )
    with pytest.raises(UnsupportedModelError, match=r"neither act\(g\.h\) nor act\(g\.h\) \* \(p"):
        HiddenUnits.of(spec, projection)
