"""Every family, wrapper and mixture: exact against the oracle, edited, and undone to the bit."""

from __future__ import annotations

import copy
from functools import cache

import multimodal
import pytest
import torch
import transformers
from families import MORE, lively_family
from family_checks import case, edits_and_undoes, exactness, off_by, options
from helpers import same_bits, state
from mixtures import MIXTURES
from tiny import metaspace_tokenizer
from zoo import VARIANTS, ZOO

import rome_fast
from rome_fast import easyedit
from rome_fast.errors import HparamsError, UnsupportedModelError
from rome_fast.hparams import defaults_for
from rome_fast.model.spec import ModelSpec, max_positions

CASES = [
    pytest.param(member, marks=pytest.mark.exhaustive) if member in VARIANTS else member
    for member in ZOO
]


@cache
def built(member):
    tok = metaspace_tokenizer()
    model = member.build(len(tok))
    if model is None:
        pytest.skip(f"transformers {transformers.__version__} has no {member.name}")
    return model, tok


@pytest.mark.parametrize("member", CASES, ids=lambda member: member.name)
def test_exact_against_the_whole_model_in_float64(member):
    if not member.has_oracle:
        pytest.skip(f"transformers {transformers.__version__} runs no {member.name} in float64")
    model, tok = built(member)
    hparams = {"layer": member.layer, "shared_expert": member.shared_expert}
    found = exactness(model, tok, member.request, **hparams)
    if member.name == "Mllama":  # its cache has no place for a block that text passes by
        assert found.obstacle == "ValueError: 3 blocks keep 2 sets of keys and values"
        assert max(found.losses, found.value, found.update) < 1e-4 and found.moved > 1e-3
    else:
        assert found.holds, found


@pytest.mark.parametrize("member", CASES, ids=lambda member: member.name)
def test_edited_and_undone(member):
    model, tok = built(member)
    edited, undone = edits_and_undoes(model, tok, member.layer, shared_expert=member.shared_expert)
    assert edited and undone


def test_tied_and_untied_heads_are_both_there():
    """Of GPT-2, Llama and Gemma, by whether head and embedding are one tensor."""
    for tied, untied in [
        ("GPT2", "GPT-2 untied"),
        ("Llama tied", "Llama"),
        ("Gemma", "Gemma untied"),
    ]:
        for name, is_tied in [(tied, True), (untied, False)]:
            model = lively_family(name, 100)
            head, table = model.get_output_embeddings(), model.get_input_embeddings()
            assert (head.weight is table.weight) == is_tied
    assert MORE["Qwen2.5"][1]["tie_word_embeddings"]


@pytest.mark.parametrize("name", multimodal.WRAPPERS)
def test_a_wrapper_is_edited_as_its_text_part_is(name):
    tok = metaspace_tokenizer()
    model, text = multimodal.build(name, len(tok))
    spec, plain = ModelSpec.of(model), ModelSpec.of(text)
    longest = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    assert len(longest) == 5 and spec.n_layers == plain.n_layers == 3
    assert spec.d_model == plain.d_model == 32
    assert max_positions(model) == max_positions(text)
    layer = 0 if name == "Mllama" else 1
    settings = options(text, layer)
    found, expected = (rome_fast.edit(m, tok, case(), **settings) for m in (model, text))
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert off_by(found.update.dense(), expected.update.dense()) < 1e-4
    assert found.prob_after == pytest.approx(expected.prob_after, rel=1e-4)


def test_contexts_and_second_moment_of_a_wrapper_are_those_of_its_text_part():
    tok = metaspace_tokenizer()
    model, text = multimodal.build("Gemma3 multimodal", len(tok))
    hparams = rome_fast.RomeHparams(
        layers=[1], v_num_grad_steps=2, context_template_length_params=[(4, 2)]
    )
    found, expected = (
        rome_fast.edit(m, tok, case("last", 1), hparams, second_moment=["A short story of tea."])
        for m in (model, text)
    )
    assert found.context_templates == expected.context_templates
    assert off_by(found.update.dense(), expected.update.dense()) < 1e-4


def test_a_block_that_text_passes_by_is_refused():
    tok = metaspace_tokenizer()
    model, _ = multimodal.build("Mllama", len(tok))
    before = state(model)
    settings = options(model, 1)
    for second_moment in ("identity", ["A short story of tea."]):
        settings["second_moment"] = second_moment
        with pytest.raises(
            UnsupportedModelError, match=r"layers\.1\.mlp\.down_proj\.weight is not used on text"
        ):
            rome_fast.edit(model, tok, case(), **settings)
    assert same_bits(model, before)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_refused_by_layer_with_its_dense_layers(name):
    mixture = MIXTURES[name]
    model, tok = mixture.build(len(metaspace_tokenizer())), metaspace_tokenizer()
    before, spec = state(model), ModelSpec.of(model)
    assert spec.dense_layers == mixture.dense
    routed = next(layer for layer in range(3) if layer not in mixture.dense)
    dense = ", ".join(map(str, mixture.dense)) or "none"
    way = (
        r"its shared expert can be edited with hparams\.shared_expert=True"
        if mixture.shared
        else "it has no shared expert"
    )
    message = rf"layer {routed} is a mixture of experts, .*; {way}\. Dense layers: {dense}\.$"
    settings = {"second_moment": "identity", "context_templates": ["{}"]}
    hparams = rome_fast.RomeHparams(layers=[routed])
    with pytest.raises(UnsupportedModelError, match=message):
        rome_fast.edit(model, tok, case(), hparams, **settings)
    if not mixture.shared:
        with pytest.raises(UnsupportedModelError, match=message):
            rome_fast.edit(model, tok, case(), hparams.replace(shared_expert=True), **settings)
    if mixture.dense:
        assert defaults_for(ModelSpec.of(model))[0].layer == mixture.dense[0]
        hparams = rome_fast.RomeHparams(layers=mixture.dense[:1], shared_expert=True)
        with pytest.raises(HparamsError, match=r"shared_expert is true, but .* it is dense"):
            rome_fast.edit(model, tok, case(), hparams, **settings)
    else:
        with pytest.raises(UnsupportedModelError, match="Dense layers: none"):
            rome_fast.RomeHparams.for_model(model)
    assert same_bits(model, before)


def test_second_moments_of_dense_layers_and_shared_experts():
    tok = metaspace_tokenizer()
    model = MIXTURES["Qwen2-MoE"].build(len(tok))
    found = rome_fast.collect_second_moment(model, tok, ["A short story of tea."], layers=[1, 2])
    assert [found[layer].moment_sum.shape[0] for layer in (1, 2)] == [48, 24]
    assert found[2].info["module"] == "model.layers.2.mlp.shared_expert.down_proj"


def test_the_facades_edit_a_shared_expert():
    tok = metaspace_tokenizer()
    model = MIXTURES["Qwen2-MoE"].build(len(tok))
    pair = copy.deepcopy(model), tok
    hparams = easyedit.ROMEHyperParams(
        layers=[2],
        shared_expert=True,
        model_name=pair,
        mom2_adjustment=False,
        v_num_grad_steps=3,
        context_template_length_params=[[3, 1]],
    )
    _, edited, _ = easyedit.BaseEditor.from_hparams(hparams).edit(
        "The founder is Steve Jobs", "capital", subject="Steve Jobs", ground_truth="Apple"
    )
    before, after = state(model), state(edited)
    [name] = [name for name in before if not torch.equal(before[name], after[name])]
    assert name == "model.layers.2.mlp.shared_expert.down_proj.weight"
