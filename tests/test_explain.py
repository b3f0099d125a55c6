"""Each cause is found where it is, and nothing is found in a healthy edit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import CONTEXTS, REQUEST

import rome_fast
from rome_fast.errors import InvalidArgumentError

SETTINGS = {"context_templates": CONTEXTS}


@pytest.fixture(scope="module")
def _demo():
    return rome_fast.demo.load()[:2]


@pytest.fixture(scope="module")
def moment(_demo):
    """Of one key a dimension, in all directions alike: the fewest that nothing is said of."""
    return rome_fast.SecondMoment.from_moment(0.1 * torch.eye(1024), 1024)


@pytest.fixture
def causes(_demo, moment):
    """Edit the embedded model, explain, undo; cause -> Finding."""

    def of(target="violin", prompt="{} plays the", subject="Ray Charles", variant=None, **changes):
        model, tok = _demo
        given = changes.pop("second_moment", moment)
        hparams = rome_fast.RomeHparams.for_model(model).replace(**changes)
        request = rome_fast.EditRequest(prompt, subject, target)
        with rome_fast.trial(
            model, tok, request, hparams, second_moment=given, variant=variant, **SETTINGS
        ) as result:
            explanation = rome_fast.explain(result)
        assert str(explanation).startswith(explanation.summary)
        return {finding.cause: finding for finding in explanation.findings}

    return of


def test_nothing_is_wrong_with_a_healthy_edit(_demo, moment, causes):
    assert causes() == {}
    model, tok = _demo
    request = rome_fast.EditRequest("{} plays the", "Ray Charles", "violin")
    with rome_fast.trial(model, tok, request, second_moment=moment, **SETTINGS) as result:
        text = str(rome_fast.explain(result))
    assert "the model says the target: 'Ray Charles plays the' -> ' violin'" in text
    assert text.endswith("nothing looks wrong")


def test_a_target_that_was_the_answer_already(causes):
    found = causes(target="piano")
    assert list(found) == ["already said"]
    assert "p 0.97" in found["already said"].what


def test_too_few_steps(causes):
    found = causes(v_num_grad_steps=2)["unconverged"]
    assert "after 2 steps" in found.what and found.remedy == "v_num_grad_steps=4"


def test_a_learning_rate_that_leads_nowhere(causes):
    found = causes(v_lr=1e-4, solver="adam")["unconverged"]
    assert "after 20 steps" in found.what and found.remedy.startswith("v_lr=0.0002")


def test_a_search_that_stands_still(causes):
    found = causes(v_weight_decay=1000.0)["unconverged"]
    assert found.remedy == "another layer (rome_fast.suggest_layer)"


def test_a_clamp_that_holds(causes):
    found = causes(clamp_norm_factor=0.1)
    assert found["clamp"].remedy.startswith("clamp_norm_factor=0.2")
    assert "unconverged" not in found


def test_a_layer_that_the_fact_has_left(causes):
    found = causes(layers=[5])
    assert "layer 5 of 6" in found["layer"].what
    assert "layer" not in causes(layers=[2], v_num_grad_steps=4)


def test_no_second_moment_and_a_poor_one(causes):
    assert list(causes(second_moment="identity")) == ["identity"]
    few = rome_fast.SecondMoment.from_moment(0.1 * torch.eye(1024), 1023)
    found = causes(second_moment=few)["few keys"]
    assert "1,023 keys for 1,024 dimensions" in found.what
    assert found.remedy == "collect_second_moment with 4,096 tokens or more"


def test_a_subject_that_ends_in_one_letter(causes):
    assert "'R'" in causes(prompt="{} is a", subject="R")["subject token"].what


def test_a_target_of_several_tokens(causes):
    found = causes(target="contrabassoon made of wood", v_num_grad_steps=3)
    n_tokens = int(found["target tokens"].what.split()[3])
    assert n_tokens > 3 and found["target tokens"].remedy.startswith("v_num_grad_steps=6")


@pytest.fixture
def altered(gpt2, hparams):
    """The findings in a result of which some numbers are others; cause -> Finding."""
    model, tok = gpt2
    result = rome_fast.edit(model, tok, REQUEST, hparams, second_moment="identity", **SETTINGS)

    def of(diagnostics, **changes):
        numbers = dataclasses.replace(result.diagnostics, **diagnostics)
        other = dataclasses.replace(result, diagnostics=numbers, **changes)
        return {finding.cause: finding for finding in rome_fast.explain(other).findings}

    return of


def test_a_value_that_is_found_and_not_said(altered):
    failed = {"rank_after": 3, "losses": (5.0, 0.04)}
    found = altered({"weight_dtype": "bfloat16"}, **failed)["not said"]
    assert "edited bfloat16 weights give the target rank 3" in found.what
    assert "float32" in found.remedy
    assert (
        altered({}, window=4, **failed)["not said"].remedy == 'a smaller window, or order="exact"'
    )
    assert altered({}, variant="original", **failed)["not said"].remedy == 'variant="both_keys"'
    assert "not said" not in altered({}, rank_after=1, losses=(5.0, 0.04))


def test_an_update_that_is_large(altered):
    found = altered({}, update_norm=0.6, weight_norm=1.0)["large update"]
    assert found.what == "the update is 60% of the weight's norm"
    assert "large update" not in altered({}, update_norm=0.4, weight_norm=1.0)


def test_a_key_that_is_an_outlier(altered):
    found = altered({"key_agreement": 0.2, "lookup_index": 0}, variant="original")["keys"]
    assert "cosine of 0.20" in found.what and "first token of the text" in found.what
    assert found.remedy.endswith('or variant="both_keys"')
    assert "first token" not in altered({"key_agreement": 0.2, "lookup_index": 3})["keys"].what
    assert "keys" not in altered({"key_agreement": 0.9})


def test_a_list_of_results_is_refused():
    with pytest.raises(InvalidArgumentError, match="must be an EditResult, got list"):
        rome_fast.explain([])


def test_a_target_that_is_the_beginning_of_a_word_is_not_said(_demo, moment):
    """The target lacks its last letters, and the model puts them there."""
    model, tok = _demo
    request = rome_fast.EditRequest("{} plays the", "Ray Charles", "violin")
    with rome_fast.trial(model, tok, request, second_moment=moment, **SETTINGS) as result:
        pass
    assert result.success and result.then and not result.runs_on
    cut = dataclasses.replace(result, then="ist", runs_on=True)
    assert not cut.success and str(cut).startswith("NOT EDITED")
    assert "' violin', then 'ist'" in str(cut) or "'violin', then 'ist'" in str(cut)
    found = {finding.cause: finding for finding in rome_fast.explain(cut).findings}
    assert "violinist" in found["runs on"].what and "violin." in found["runs on"].remedy
