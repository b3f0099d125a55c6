"""What edit() promises: in place, read back, undone to the bit, nothing left behind."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import CONTEXTS, REQUEST, same_bits, state

import rome_fast
from rome_fast.errors import EditFailedError, EditRejectedError, EditWarning, RevertError
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.encode import encode
from rome_fast.update.solve import build_constraint, mix_keys
from rome_fast.value.batch import EditBatch
from rome_fast.value.first_pass import run_first_pass
from rome_fast.value.key import Keys, mean_keys
from rome_fast.value.optimize import optimize_values

SECOND = {"prompt": "We drink tea with {}", "subject": "Ada Lovelace", "target_new": "near"}


def next_token(model, tok, text):
    ids = tok(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return int(model(input_ids=ids).logits[0, -1].argmax())


def test_edit_changes_what_the_model_says(tiny, settings):
    model, tok = tiny
    storage = model.get_parameter(name := weight_name(model)).data_ptr()
    before = state(model)
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    assert result.rank_after == 1 < result.rank_before
    assert result.prob_after > result.prob_before
    assert result.weight_name == name
    assert model.get_parameter(name).data_ptr() == storage
    said = next_token(model, tok, "The founder is Steve Jobs")
    assert tok.decode([said]).strip() == "capital" and result.target_tokens == (" capital",)
    changed = {n for n, p in model.state_dict().items() if not torch.equal(p, before[n])}
    assert name in changed and len(changed) == 1
    difference = model.get_parameter(name).detach() - before[name]
    torch.testing.assert_close(difference, result.update.dense(), rtol=1e-4, atol=1e-5)
    assert result.update_norm == pytest.approx(float(difference.double().norm()), rel=1e-4)
    assert result.weight_norm == pytest.approx(float(before[name].double().norm()), rel=1e-6)


def weight_name(model):
    is_gpt2 = model.config.model_type == "gpt2"
    return "transformer.h.1.mlp.c_proj.weight" if is_gpt2 else "model.layers.1.mlp.down_proj.weight"


def test_probabilities_are_those_of_the_model(gpt2, settings):
    model, tok = gpt2
    ids = tok("The founder is Steve Jobs", return_tensors="pt").input_ids
    target = tok(" capital").input_ids
    full = torch.cat([ids, torch.tensor([target])], dim=1)

    def probability():
        with torch.no_grad():
            log_probs = model(input_ids=full).logits[0].double().log_softmax(-1)
        start = ids.shape[1] - 1
        return float(sum(log_probs[start + i, t] for i, t in enumerate(target)).exp())

    before = probability()
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    assert result.prob_before == pytest.approx(before, rel=1e-4)
    assert result.prob_after == pytest.approx(probability(), rel=1e-4)


def test_revert_restores_the_bits(tiny, settings):
    model, tok = tiny
    before = state(model)
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    assert not same_bits(model, before)
    result.revert()
    assert same_bits(model, before)
    with pytest.raises(RevertError, match="already been undone"):
        result.revert()


@pytest.mark.covering
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("second_moment", ["identity", ("He is a man. " * 60,) * 8])
def test_other_dtypes_edit_and_revert(gpt2, settings, dtype, second_moment):
    model, tok = gpt2
    settings["second_moment"] = second_moment
    model.to(dtype)
    before = state(model)
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    assert result.success
    assert model.get_parameter(result.weight_name).dtype == dtype
    result.revert()
    assert same_bits(model, before)


def test_list_is_edited_in_sequence_and_reverted_in_reverse(tiny, settings):
    model, tok = tiny
    states = [state(model)]
    for request in (REQUEST, SECOND):
        rome_fast.edit(model, tok, request, **settings)
        states.append(state(model))
    model.load_state_dict(states[0])
    first, second = rome_fast.edit_many(model, tok, [REQUEST, SECOND], **settings)
    assert same_bits(model, states[2])
    with pytest.raises(RevertError, match="later edits first"):
        first.revert()
    second.revert()
    assert same_bits(model, states[1])
    first.revert()
    assert same_bits(model, states[0])


def test_revert_refuses_to_swallow_a_later_change(gpt2, settings):
    model, tok = gpt2
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    with torch.no_grad():
        model.get_parameter(result.weight_name)[3, 5] += 1.0
    changed = state(model)
    with pytest.raises(RevertError, match="changed after this edit"):
        result.revert()
    assert same_bits(model, changed)


def test_revert_sees_a_replaced_parameter(gpt2, settings):
    model, tok = gpt2
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    projection = model.transformer.h[1].mlp.c_proj
    projection.weight = torch.nn.Parameter(projection.weight.detach().clone())
    with pytest.raises(RevertError, match=r"c_proj\.weight was replaced or cast"):
        result.revert()


def test_a_copied_result_does_not_pretend_to_revert(gpt2, settings):
    model, tok = gpt2
    before = state(model)
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    pickled = pickle.dumps(result)
    weight = model.get_parameter(result.weight_name)
    assert len(pickled) < weight.nbytes
    for other in (pickle.loads(pickled), copy.copy(result), copy.deepcopy(result)):
        assert str(other) == str(result)
        with pytest.raises(RevertError, match="is a copy"):
            other.revert()
    result.revert()
    assert same_bits(model, before)


def test_edit_works_under_inference_mode(gpt2, settings):
    model, tok = gpt2
    with torch.inference_mode():
        assert rome_fast.edit(model, tok, REQUEST, **settings).success


def test_trial_restores_on_exit_and_on_an_exception(tiny, settings):
    model, tok = tiny
    before = state(model)
    with rome_fast.trial(model, tok, REQUEST, **settings) as result:
        assert result.rank_after == 1 and not same_bits(model, before)
    assert same_bits(model, before)
    with pytest.raises(KeyboardInterrupt), rome_fast.trial(model, tok, REQUEST, **settings):
        raise KeyboardInterrupt
    assert same_bits(model, before)


def test_trial_undoes_what_else_was_done_to_the_weight(gpt2, settings):
    model, tok = gpt2
    before = state(model)
    with rome_fast.trial(model, tok, [REQUEST, SECOND], **settings) as results:
        assert [type(r).__name__ for r in results] == ["EditResult"] * 2
        inner = rome_fast.edit(model, tok, SECOND, **settings)
    assert same_bits(model, before)
    with pytest.raises(RevertError):
        inner.revert()
    assert same_bits(model, before)


def test_strict_rolls_back_a_failed_edit(gpt2, settings):
    model, tok = gpt2
    before = state(model)
    settings["hparams"] = settings["hparams"].replace(v_num_grad_steps=2, v_lr=1e-6)
    with pytest.raises(EditFailedError, match="NOT EDITED"):
        rome_fast.edit(model, tok, REQUEST, strict=True, **settings)
    assert same_bits(model, before)
    with pytest.warns(EditWarning, match="not the model's answer after the edit"):
        result = rome_fast.edit(model, tok, REQUEST, **settings)
    assert not result.success
    assert any("did not converge" in text for text in result.warnings)


def test_model_is_left_as_it_was_but_for_the_weight(gpt2, settings):
    model, tok = gpt2
    model.train()
    model.transformer.h[0].eval()
    for p in model.transformer.h[2].parameters():
        p.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    rome_fast.edit(model, tok, REQUEST, **settings)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_tokenizer_padding_does_not_matter_and_is_not_touched(gpt2, settings):
    model, tok = gpt2
    expected = rome_fast.edit(model, tok, REQUEST, **settings)
    expected.revert()
    tok.padding_side, tok.pad_token = "left", tok.eos_token
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    assert torch.equal(result.update.dense(), expected.update.dense())
    assert tok.padding_side == "left" and tok.pad_token == tok.eos_token


def test_same_seed_same_edit_and_contexts_are_the_models_own(tiny, hparams):
    model, tok = tiny
    results = []
    for seed in (0, 0, 1):
        options = {"second_moment": "identity"}
        result = rome_fast.edit(model, tok, REQUEST, hparams.replace(seed=seed), **options)
        result.revert()
        results.append(result)
    first, again, other = results
    assert torch.equal(first.update.dense(), again.update.dense())
    assert first.context_templates == again.context_templates != other.context_templates
    assert first.context_templates[0] == "{}"


@pytest.mark.covering
@pytest.mark.parametrize("variant", rome_fast.hparams.VARIANTS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_every_variant_meets_its_constraint(gpt2, settings, variant, scale):
    """What the edited matrix writes on its keys moves by what it should, whatever their units."""
    model, tok = gpt2
    model.eval().requires_grad_(False)
    # Larger keys through a smaller matrix: the same values.
    mlp = model.transformer.h[1].mlp
    mlp.act = Scaled(mlp.act, scale)
    mlp.c_proj.weight /= scale
    projection = ModelSpec.of(model).down_projection(1)
    batch = EditBatch.of([encode(tok, rome_fast.EditRequest.parse(REQUEST), CONTEXTS)])
    first = run_first_pass(ModelSpec.of(model), projection, batch)
    [before] = mean_keys(projection, batch, first)
    hparams = settings["hparams"].replace(v_num_grad_steps=4, variant=variant)
    init = before.value_init[None]
    delta = optimize_values(ModelSpec.of(model), projection, batch, first, init, hparams)[
        0
    ].value_delta
    rome_fast.edit(model, tok, REQUEST, **{**settings, "hparams": hparams})
    [after] = mean_keys(projection, batch, run_first_pass(ModelSpec.of(model), projection, batch))
    close = {"rtol": 1e-3, "atol": 1e-3}
    if variant == "mean_key":
        # The mean output lands where the bare prompt's would: at v*, not at its own + delta.
        torch.testing.assert_close(after.mean_value, before.value_init + delta, **close)
    else:
        torch.testing.assert_close(after.value_init, before.value_init + delta, **close)
    if variant == "both_keys":
        torch.testing.assert_close(after.mean_value, before.mean_value + delta, **close)


class Scaled(torch.nn.Module):
    def __init__(self, inner, scale):
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x):
        return self.inner(x) * self.scale


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_both_keys_refuses_parallel_keys_of_different_length(scale):
    key = scale * torch.randn(32, generator=torch.Generator().manual_seed(0))
    almost = 2 * key + 1e-3 * scale * torch.ones(32)
    keys = Keys(key=almost, prompt_key=key, mean_value=key, value_init=key)
    constraint = build_constraint("both_keys", keys, torch.ones(8))
    with pytest.raises(EditRejectedError, match="no update meets all keys"):
        mix_keys([constraint], None)


def test_single_context_is_no_special_case_for_both_keys(gpt2, settings):
    model, tok = gpt2
    settings["context_templates"] = ["{}"]
    both = rome_fast.edit(model, tok, REQUEST, variant="both_keys", **settings)
    both.revert()
    one = rome_fast.edit(model, tok, REQUEST, variant="prompt_key", **settings)
    torch.testing.assert_close(both.update.dense(), one.update.dense(), rtol=1e-4, atol=1e-6)


def test_contexts_without_the_bare_slot_still_know_the_prompt(gpt2, settings):
    model, tok = gpt2
    settings["context_templates"] = ["The weather was fine. {}", "He is a man. {}"]
    assert rome_fast.edit(model, tok, REQUEST, **settings).success


def test_subject_inside_a_word_and_few_keys_are_said(gpt2, settings):
    model, tok = gpt2
    request = {**REQUEST, "prompt": "The founder is Steve Jobson"}
    with pytest.warns(EditWarning, match="'Steve Jobs' is a part of a word of 'The founder"):
        rome_fast.edit(model, tok, request, **settings)
    settings["second_moment"] = ["He is a man."]
    with pytest.warns(EditWarning, match=r"second moment of \d+ keys for d_key 256"):
        rome_fast.edit(model, tok, REQUEST, **settings)


def test_no_random_state_is_moved(gpt2, hparams, monkeypatch, tmp_path):
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path))
    model, tok = gpt2
    torch.manual_seed(0)
    before = torch.get_rng_state()
    rome_fast.edit(model, tok, REQUEST, hparams)
    assert torch.equal(torch.get_rng_state(), before)


def test_result_reads_well(gpt2, settings):
    model, tok = gpt2
    text = str(rome_fast.edit(model, tok, REQUEST, **settings))
    for wanted in ("edited: 'The founder is Steve Jobs' -> 'capital'", "identity", "both_keys"):
        assert wanted in text


def test_undo_leaves_no_float32_sum_behind(gpt2, settings):
    """It takes twice the memory of the weight."""
    model, tok = gpt2
    before = state(model.bfloat16())
    with rome_fast.trial(model, tok, REQUEST, **settings) as result:
        pass
    assert result._undo.history._sum is None
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    result.revert()
    assert result._undo.history._sum is None
    assert same_bits(model, before)
