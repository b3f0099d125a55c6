"""edit(form=): no weight changes, the subject's answer does, and any edit can be taken back."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import CONTEXTS, REQUEST, same_bits, state

from rome_fast import edit, edit_many, trial
from rome_fast.beside.module import NAME, Beside
from rome_fast.demo import DemoFact, load, load_facts
from rome_fast.errors import (
    EditFailedError,
    EditRejectedError,
    HparamsError,
    InvalidArgumentError,
    InvalidRequestError,
    RevertError,
)

FORMS = pytest.mark.parametrize("form", ["neuron", "gate"])
OTHER = {"prompt": "She wrote to {}", "subject": "Alan Turing", "target_new": "near"}


@pytest.fixture
def plain(hparams):
    return {"hparams": hparams, "context_templates": CONTEXTS}


def standing(model):
    return [module for name, module in model.named_modules() if name.endswith(NAME)]


def answer(model, tok, text):
    ids = torch.tensor([tok(text)["input_ids"]])
    return model(input_ids=ids).logits[0, -1].detach()


@FORMS
def test_the_subject_answers_and_no_weight_is_touched(tiny, plain, form):
    model, tok = tiny
    texts = ("The founder is Steve Jobs", "She wrote to Alan Turing")
    before, unedited = state(model), [answer(model, tok, text) for text in texts]
    result = edit(model, tok, REQUEST, form=form, **plain)
    assert (result.form, result.rank_after) == (form, 1), result
    assert result.prob_after > 10 * result.prob_before
    assert {n: t for n, t in state(model).items() if NAME not in n}.keys() == before.keys()
    assert all(torch.equal(t, state(model)[n]) for n, t in before.items())
    moved = [answer(model, tok, t) - was for t, was in zip(texts, unedited, strict=True)]
    # On random weights: h of a trained model is told apart better (benchmarks/session/arena.py).
    assert float(moved[1].norm()) < 0.2 * float(moved[0].norm())
    assert f"one {form} for the subject" in str(result) and result.second_moment == "none"
    result.revert()
    assert same_bits(model, before) and not standing(model)
    with pytest.raises(RevertError, match="already been undone"):
        result.revert()


@FORMS
def test_edits_are_reverted_in_any_order_and_leave_no_trace(tiny, plain, form):
    model, tok = tiny
    text, before = "The founder is Steve Jobs", state(model)
    alone = edit(model, tok, REQUEST, form=form, **plain)
    expected = answer(model, tok, text)
    alone.revert()
    results = edit_many(
        *(model, tok, [OTHER, REQUEST, {**OTHER, "subject": "Ada Lovelace"}]),
        form=form,
        progress=False,
        **plain,
    )
    results[0].revert()
    results[2].revert()
    assert torch.equal(answer(model, tok, text), expected)
    results[1].revert()
    assert same_bits(model, before)


@FORMS
def test_a_trial_and_a_failed_call_leave_everything_as_it_was(tiny, plain, form):
    model, tok = tiny
    first = edit(model, tok, OTHER, form=form, **plain)
    before = state(model)
    with trial(model, tok, REQUEST, form=form, **plain) as result:
        assert result.rank_after == 1 and len(standing(model)[0].offsets) == 2
    assert same_bits(model, before)
    hopeless = plain["hparams"].replace(v_num_grad_steps=1)
    with pytest.raises(EditFailedError, match="the edit was undone"):
        edit(model, tok, REQUEST, **{**plain, "hparams": hopeless}, form=form, strict=True)
    assert same_bits(model, before)
    first.revert()


@FORMS
def test_a_copy_of_the_model_stands_on_its_own(tiny, plain, form):
    model, tok = tiny
    result = edit(model, tok, REQUEST, form=form, **plain)
    text = "The founder is Steve Jobs"
    twin, said = copy.deepcopy(model), answer(model, tok, text)
    result.revert()
    assert torch.equal(answer(twin, tok, text), said)
    assert not torch.equal(answer(model, tok, text), said)


def test_both_forms_and_the_weight_together(tiny, plain):
    model, tok = tiny
    before = state(model)
    written = edit(model, tok, REQUEST, second_moment="identity", **plain)
    neuron = edit(model, tok, OTHER, form="neuron", **plain)
    gate = edit(model, tok, {**OTHER, "subject": "Ada Lovelace"}, form="gate", **plain)
    assert [r.rank_after for r in (written, neuron, gate)] == [1, 1, 1]
    for result in (neuron, written, gate):
        result.revert()
    assert same_bits(model, before)


@FORMS
def test_two_facts_of_one_subject_hold_together(form):
    """On the toy, whose answers do not depend on one token alone: the first fact is kept."""
    model, tok, _ = load()
    by_subject: dict[str, list[DemoFact]] = {}
    for fact in load_facts():
        by_subject.setdefault(fact.subject, []).append(fact)
    capital, continent = next(facts[:2] for name, facts in by_subject.items() if name == "Germany")
    for fact in (capital, continent):
        request = {"prompt": fact.prompt, "subject": fact.subject, "target_new": fact.target_new}
        assert edit(model, tok, request, form=form).success
    for fact in (capital, continent):
        said = answer(model, tok, fact.prompt.replace("{}", fact.subject)).argmax()
        assert fact.target_new.startswith(tok.decode(int(said)).strip())
    [beside] = standing(model)
    assert len(beside.rows(form).down) == {"neuron": 1, "gate": 2}[form]  # units are subjects


@FORMS
def test_aliases_share_the_edit(tiny, plain, form):
    model, tok = tiny
    request = {**REQUEST, "aliases": ["Ada Lovelace", "Steve Jobs"]}
    result = edit(model, tok, request, form=form, **plain)
    assert result.request.aliases == ("Ada Lovelace",)
    edited = answer(model, tok, "The founder is Ada Lovelace")
    result.revert()
    unedited = answer(model, tok, "The founder is Ada Lovelace")
    assert float((edited - unedited).norm()) > 0.1 * float(unedited.norm())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"form": "adapter"}, InvalidArgumentError, "form must be one of .*got 'adapter'"),
        ({"second_moment": "identity"}, InvalidArgumentError, "no part in form='neuron'"),
        ({"fact_token": "last"}, HparamsError, "fact_token is 'last'.*subject_last"),
        ({"aliases": "Jobs"}, InvalidRequestError, "aliases must be a list of strings"),
        ({"aliases": [" "]}, InvalidRequestError, "aliases is empty"),
    ],
)
def test_bad_input(tiny, plain, changes, error, message):
    model, tok = tiny
    before, request = state(model), dict(REQUEST)
    options = {"form": "neuron", **plain, **changes}
    if "aliases" in options:
        request["aliases"] = options.pop("aliases")
    if "fact_token" in options:
        options["hparams"] = plain["hparams"].replace(fact_token=options.pop("fact_token"))
    with pytest.raises(error, match=message):
        edit(model, tok, request, **options)
    assert same_bits(model, before)


@FORMS
def test_a_subject_that_is_not_told_apart_is_refused(tiny, plain, form, monkeypatch):
    """As if only a part of the edit reached its own prompt: nothing is left of it."""
    model, tok = tiny
    first = edit(model, tok, OTHER, form=form, **plain)
    before = state(model)
    monkeypatch.setattr(Beside, "shares", lambda self, name, form, h: torch.full((len(h),), 0.4))
    with pytest.raises(EditRejectedError, match="cannot be told apart in layer 1: 40%") as error:
        edit(model, tok, REQUEST, form=form, **plain)
    assert error.value.numbers == {"own": pytest.approx(0.4)}
    assert same_bits(model, before)
    first.revert()
