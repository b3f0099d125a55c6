"""Losses, v* and update are the whole-model oracle's, to 1e-4, in float32, in every family.

Real text and two tokenizers, so that token positions are found by both sides on their own. Few
steps: Adam divides by the square root of small second moments, so that rounding grows with them.
"""

from __future__ import annotations

import copy

import pytest
from families import FAMILIES
from family_checks import (
    PROMPTS,
    RTOL,
    STEPS,
    SUBJECT,
    TARGETS,
    case,
    compare,
    exactness,
    expected_of,
    options,
    values_found,
)
from structures import STRUCTURES, TOKENIZERS, built

import rome_fast
from rome_fast.model.spec import ModelSpec

FACT_TOKENS = ["subject_last", "subject_first", "subject_first_after_last", "last"]


def check(model, tok, request, layer=1, **hparams):
    found = exactness(model, tok, request, layer, **hparams)
    assert found.holds, found


@pytest.mark.covering(family=STRUCTURES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, tokenizer):
    check(*built(family, tokenizer), case())


@pytest.mark.covering("family,place", "fact_token,n_target")
@pytest.mark.parametrize("fact_token", FACT_TOKENS)
@pytest.mark.parametrize("n_target", TARGETS)
@pytest.mark.parametrize("place", PROMPTS)
@pytest.mark.parametrize("family", STRUCTURES)
def test_every_place_target_and_fact_token(family, place, n_target, fact_token):
    model, tok = built(family, STRUCTURES[family])
    check(model, tok, case(place, n_target), fact_token=fact_token)


@pytest.mark.covering
@pytest.mark.parametrize("n_target", TARGETS)
@pytest.mark.parametrize("place", PROMPTS)
@pytest.mark.parametrize("family", STRUCTURES)
def test_the_first_layer(family, place, n_target):
    """Nothing lies below the edited block that could be handed over. The ball is narrow."""
    model, tok = built(family, STRUCTURES[family])
    check(model, tok, case(place, n_target), layer=0, clamp_norm_factor=0.5)


@pytest.mark.covering
@pytest.mark.parametrize("n_target", TARGETS)
@pytest.mark.parametrize(
    ("place", "fact_token"),
    [("last", "subject_last"), ("last", "subject_first_after_last"), ("middle", "last")],
)
@pytest.mark.parametrize("family", STRUCTURES)
def test_the_last_layer(family, place, fact_token, n_target):
    """Its offset reaches no other position: the lookup must end the prompt."""
    model, tok = built(family, STRUCTURES[family])
    last = ModelSpec.of(model).n_layers - 1
    check(model, tok, case(place, n_target), layer=last, fact_token=fact_token)


@pytest.mark.covering
@pytest.mark.parametrize("pad", [None, "unk_token"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", STRUCTURES)
def test_every_padding_habit(family, side, pad):
    model, tok = built(family, STRUCTURES[family])
    tok = copy.deepcopy(tok)
    tok.padding_side = side
    if pad is not None:
        tok.pad_token = getattr(tok, pad)
    check(model, tok, case())
    assert tok.padding_side == side


@pytest.mark.parametrize("family", STRUCTURES)
def test_requests_of_a_window_are_exact_each(family):
    """Of three lengths, searched at once: to the end, and with ends at different steps."""
    model, tok = built(family, STRUCTURES[family])
    subjects = {"middle": SUBJECT, "first": "Ada Lovelace", "last": "Eiffel Tower"}
    requests = [case(place, 3, subject) for place, subject in subjects.items()]
    requests[1]["target_new"] = TARGETS[1]
    settings = {**options(model, 1), "order": "independent", "window": 3, "progress": False}
    expected = [expected_of(model, tok, request, settings["hparams"]) for request in requests]
    with values_found() as values, rome_fast.trial(model, tok, requests, **settings) as results:
        assert [result.window for result in results] == [3, 3, 3]
    of_losses = {value.losses: value for value in values}  # they are searched in another order
    for result, oracle in zip(results, expected, strict=True):
        found = compare(result, of_losses[result.losses], oracle)
        # They are solved together, so that each update is another than alone.
        assert max(found.losses, found.value) <= RTOL
        assert found.moved > 5 * RTOL and not found.obstacle
    losses = sorted(loss for oracle in expected for loss in oracle.losses)
    enough = sum(losses[STEPS : STEPS + 2]) / 2
    settings["hparams"] = settings["hparams"].replace(v_stop_loss=enough)
    with rome_fast.trial(model, tok, requests, **settings) as results:
        assert len({len(result.losses) for result in results}) > 1
    for result, oracle in zip(results, expected, strict=True):
        n_steps = next((i for i, loss in enumerate(oracle.losses, 1) if loss < enough), STEPS)
        assert result.losses == pytest.approx(oracle.losses[:n_steps], rel=RTOL)
