"""Models with a PEFT adapter: the base weight is edited, beneath it, and that is said."""

from __future__ import annotations

import copy

import pytest
import torch
from family_checks import exactness
from helpers import REQUEST, UNWATCHED, same_bits, state

import rome_fast
from rome_fast.errors import SecondMomentError, UnsupportedModelError
from rome_fast.model.spec import ModelSpec

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")

EVERYWHERE = {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}
LORA = {**EVERYWHERE, "r": 4, "init_lora_weights": False}
KINDS = {
    "attention only": lambda: peft.LoraConfig(**{**LORA, "target_modules": None}),
    "everywhere": lambda: peft.LoraConfig(**LORA),
    "DoRA": lambda: peft.LoraConfig(**LORA, use_dora=True),
    "a head of its own": lambda: peft.LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "IA3": lambda: peft.IA3Config(task_type="CAUSAL_LM", init_ia3_weights=False),
}


def adapted(model, kind="everywhere"):
    """A copy with a random adapter that changes what it says."""
    torch.manual_seed(1)
    return peft.get_peft_model(copy.deepcopy(model), KINDS[kind]()).eval()


def says(model, tok):
    ids = torch.tensor([tok("The founder is Steve Jobs")["input_ids"]])
    with torch.no_grad():
        return tok.decode(model(input_ids=ids).logits[0, -1].argmax()).strip()


@pytest.mark.covering
@pytest.mark.parametrize("kind", KINDS)
def test_the_base_weight_is_edited_exactly_and_undone(tiny, settings, kind):
    model, tok = tiny
    wrapped = adapted(model, kind)
    assert exactness(wrapped.get_base_model(), tok).holds
    before = state(wrapped)
    result = rome_fast.edit(wrapped, tok, REQUEST, **settings)
    [name] = [n for n, p in wrapped.state_dict().items() if not torch.equal(p, before[n])]
    assert name.replace(".base_layer", "") == f"base_model.model.{result.weight_name}"
    assert result.success and says(wrapped, tok) == "capital"
    said = "the base model's weight was edited; the PEFT adapter (default) stays on top"
    assert said in result.warnings
    result.revert()
    assert same_bits(wrapped, before)


@pytest.mark.covering
@pytest.mark.parametrize("kind", KINDS)
def test_logs_and_adapters_are_those_of_the_plain_model(tiny, settings, kind, tmp_path):
    model, tok = tiny
    wrapped, before = adapted(model, kind), state(model)
    with rome_fast.Session(wrapped, tok, health=UNWATCHED, **settings, form="weight") as session:
        result = session.edit(REQUEST)
        log = session.log
    assert list(log.base.edited) == [result.weight_name]
    assert {*log.base.others, result.weight_name} == {n for n, _ in model.named_parameters()}
    applied = log.apply(model)
    edited = ModelSpec.of(wrapped).down_projection(1).weight
    assert torch.equal(model.get_parameter(result.weight_name), edited)
    applied.revert()
    assert same_bits(model, before)
    log.to_lora(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    log.apply(model)
    ids = torch.tensor([tok("The founder is Steve Jobs")["input_ids"]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        off = (loaded(input_ids=ids).logits - expected).abs().max()
    assert off < 1e-5 * expected.abs().max()


def test_a_log_of_the_plain_model_goes_beneath_an_adapter(tiny, settings):
    model, tok = tiny
    wrapped = adapted(model)
    with rome_fast.Session(
        copy.deepcopy(model), tok, health=UNWATCHED, **settings, form="weight"
    ) as session:
        session.edit(REQUEST)
        log = session.log
    before = state(wrapped)
    applied = log.apply(wrapped)
    log.apply(model)
    edited = ModelSpec.of(wrapped).down_projection(1)
    assert torch.equal(edited.weight, model.get_parameter(f"{edited.name}.weight"))
    applied.revert()
    assert same_bits(wrapped, before)


def test_with_the_adapter_merged_and_after_unmerging_the_fact_holds(tiny, settings):
    model, tok = tiny
    wrapped = adapted(model)
    wrapped.merge_adapter()
    result = rome_fast.edit(wrapped, tok, REQUEST, **settings)
    said = "the PEFT adapter (default) is merged into the edited weight; the edit stays when it is"
    assert any(text.startswith(said) for text in result.warnings)
    assert says(wrapped, tok) == "capital"
    wrapped.unmerge_adapter()
    assert says(wrapped, tok) == "capital"
    weight = ModelSpec.of(wrapped).down_projection(1).weight
    added = weight - model.get_parameter(result.weight_name)
    torch.testing.assert_close(added, result.update.dense(), rtol=1e-3, atol=1e-5)


@pytest.mark.exhaustive
def test_an_adapter_within_the_transformers_model_and_one_that_is_compiled(gpt2, settings):
    model, tok = gpt2
    inside = copy.deepcopy(model)
    torch.manual_seed(1)
    inside.add_adapter(peft.LoraConfig(**LORA))
    outside = torch.compile(adapted(model), backend="eager")
    for wrapped in (inside.eval(), outside):
        result = rome_fast.edit(wrapped, tok, REQUEST, **settings)
        assert result.weight_name == "transformer.h.1.mlp.c_proj.weight"
        assert any("(default) stays on top" in text for text in result.warnings)
        assert result.success and says(wrapped, tok) == "capital"
    torch._dynamo.reset()


def test_a_second_moment_of_the_plain_model_is_none_of_the_adapted_one(tiny, settings):
    """An adapter in the blocks below changes every key."""
    model, tok = tiny
    texts = ["A short story about tea: water boils, leaves rest, and we drink it."]
    settings["second_moment"] = rome_fast.collect_second_moment(model, tok, texts, layers=1)[1]
    with pytest.raises(SecondMomentError, match="the weights below the layer"):
        rome_fast.edit(adapted(model), tok, REQUEST, **settings)
    moments = rome_fast.collect_second_moment(adapted(model), tok, texts, layers=1)
    settings["second_moment"] = moments[1]
    rome_fast.edit(adapted(model), tok, REQUEST, **settings)


@pytest.mark.parametrize("kind", ["PromptTuning", "PrefixTuning"])
def test_learned_prompts_are_refused(tiny, settings, kind):
    model, tok = tiny
    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", num_virtual_tokens=3)
    wrapped = peft.get_peft_model(model, config)
    before = state(wrapped)
    with pytest.raises(UnsupportedModelError) as refusal:
        rome_fast.edit(wrapped, tok, REQUEST, **settings)
    assert "has the prompt-learning adapter 'default'" in str(refusal.value)
    assert "edit model.get_base_model(), without it" in str(refusal.value)
    assert same_bits(wrapped, before)
    rome_fast.edit(wrapped.get_base_model(), tok, REQUEST, **settings)


def test_a_matrix_that_was_trained_whole_is_refused(tiny, settings):
    """The adapter's copy of it runs in its place."""
    model, tok = tiny
    last = "c_proj" if hasattr(model, "transformer") else "down_proj"
    names = {"target_modules": ["c_attn"] if last == "c_proj" else ["q_proj"]}
    config = peft.LoraConfig(**{**LORA, **names}, modules_to_save=[f"mlp.{last}"])
    wrapped = peft.get_peft_model(model, config)
    with pytest.raises(UnsupportedModelError, match=r"is not used on text alone"):
        rome_fast.edit(wrapped, tok, REQUEST, **settings)
