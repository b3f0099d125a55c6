"""An edit as a unit more: in every family it adds its delta, and widening says the same."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter

import pytest
import torch
from helpers import same_bits, state
from tiny import metaspace_tokenizer
from zoo import VARIANTS, ZOO

from rome_fast.beside.directions import direction_apart
from rome_fast.beside.entry import Entry
from rome_fast.beside.module import Beside
from rome_fast.beside.widen import widened
from rome_fast.beside.writer import takes_neurons
from rome_fast.errors import UnsupportedModelError
from rome_fast.model.hashes import fingerprint
from rome_fast.model.spec import ModelSpec
from rome_fast.model.units import HiddenUnits
from rome_fast.types import EditRequest, Offset, Signature

IDS = torch.tensor([[5, 9, 11, 3, 8, 14]])
AT = 3  # the token whose h the unit is of
CASES = [
    pytest.param(member, marks=pytest.mark.exhaustive) if member in VARIANTS else member
    for member in ZOO
]
NOT_SILENT = ("Apertus",)
QUICK = ("GPT2", "Llama", "Phi3", "Bloom")
SAVED = [
    member if member.name in QUICK else pytest.param(member, marks=pytest.mark.exhaustive)
    for member in ZOO
    if member.name not in NOT_SILENT
]
# What says its number of units in no configuration, or has no room for others.
NOT_WIDENED = (
    "Bloom",
    "Mpt",
    "Qwen2-MoE",
    "Qwen3-MoE",
    "DeepSeek",
    "Llama 4",
    "GraniteMoE",
    "Ernie4.5-MoE",
    "GLM-4-MoE",
    "Mllama",
)


def prepared(member):
    """(spec, units, h of IDS [t, d_model], its output at AT) in float64."""
    model = member.build(len(metaspace_tokenizer()))
    if model is None or not member.has_oracle:
        pytest.skip(f"this transformers has no {member.name} in float64")
    model = model.double()
    spec = ModelSpec.of(model)
    units = HiddenUnits.of(spec, spec.down_projection(member.layer, member.shared_expert))
    return spec, units


def run(spec, units):
    """(h [t, d_model], what the edited matrix writes [t, d_value], logits)."""
    seen = {}
    handles = [
        units.gate.module.register_forward_pre_hook(lambda _, args: seen.update(h=args[0])),
        units.projection.module.register_forward_hook(lambda _, __, out: seen.update(out=out)),
    ]
    logits = spec.model(input_ids=IDS, use_cache=False).logits.detach()
    for handle in handles:
        handle.remove()
    t = IDS.shape[1]
    return seen["h"].detach().reshape(t, -1), seen["out"].detach().reshape(t, -1), logits


def one_offset(units, h):
    """(what stands beside, an offset of h[AT] alone): all other tokens respond with 0."""
    others = h[torch.arange(len(h)) != AT]
    moment = 1e9 * others.T @ others + torch.eye(h.shape[1], dtype=h.dtype)
    constant = torch.linalg.pinv(h) @ torch.ones(len(h), dtype=h.dtype)
    entry = Entry(moment, constant, others)
    signature = Signature(h[AT : AT + 1], direction_apart(entry, h[AT : AT + 1], h[:0]))
    delta = torch.randn(units.projection.d_value, generator=torch.Generator().manual_seed(0))
    request = EditRequest("{} is", "Paris", "red")
    offset = Offset("neuron", request, {"Paris": signature}, delta.double())
    return Beside(units, entry), offset


@pytest.mark.parametrize("form", ["neuron", "gate"])
@pytest.mark.parametrize("member", CASES, ids=lambda member: member.name)
def test_the_subject_gets_its_delta_and_nothing_else_anything(member, form):
    spec, units = prepared(member)
    before = state(spec.model)
    own = fingerprint(*spec.model.parameters())
    h, out, logits = run(spec, units)
    beside, offset = one_offset(units, h)
    if form == "neuron" and member.name in NOT_SILENT:
        with pytest.raises(UnsupportedModelError, match=r"\d\.\d% of an edit would reach all"):
            beside.set([offset])
        assert not beside.offsets
        return
    beside.set([replace(offset, form=form)])
    _, edited, _ = run(spec, units)
    added = edited - out
    torch.testing.assert_close(added[AT], offset.delta, rtol=1e-5, atol=1e-7)
    others = torch.arange(len(h)) != AT
    assert float(added[others].abs().max()) < 1e-2 * float(offset.delta.abs().max())
    assert fingerprint(*spec.model.parameters()) == own
    beside.set([])
    assert torch.equal(run(spec, units)[2], logits)
    assert same_bits(spec.model, before)


@pytest.mark.parametrize("member", SAVED, ids=lambda member: member.name)
def test_the_widened_model_has_the_logits_of_the_units_beside(member, tmp_path):
    """Saved, and loaded by transformers alone."""
    spec, units = prepared(member)
    h, _, unedited = run(spec, units)
    beside, offset = one_offset(units, h)
    beside.set([offset])
    _, _, expected = run(spec, units)
    if member.name.startswith(NOT_WIDENED):
        with pytest.raises(
            UnsupportedModelError, match=r"cannot be widened|mixture of experts|not used on text"
        ):
            widened(spec.model, multiple=8)
        return
    widened(spec.model, multiple=8).save_pretrained(tmp_path)
    wide = type(spec.model).from_pretrained(tmp_path, dtype=torch.float64).eval()
    found = wide(input_ids=IDS, use_cache=False).logits
    # Gemma rounds a constant of the embedding to the dtype that it is loaded in.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float((found - unedited).abs().max()) > 1e-2


@pytest.mark.parametrize(
    "member", [m for m in ZOO if m.name in ("Llama", *NOT_SILENT)], ids=attrgetter("name")
)
def test_whether_a_layer_takes_neurons(member):
    spec, units = prepared(member)
    takes = takes_neurons(spec, units.projection, "subject_last")
    assert takes == (member.name not in NOT_SILENT)
    assert not takes_neurons(spec, units.projection, "subject_first")
