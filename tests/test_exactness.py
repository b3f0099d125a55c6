"""Losses, v* and update are the whole-model oracle's, to 1e-4, in float32, in every family.

Real text and two tokenizers, so that token positions are found by both sides on their own. Few
steps: Adam divides by the square root of small second moments, so that rounding grows with them.
"""

from __future__ import annotations

import copy
from functools import cache

import pytest
import transformers
from families import FAMILIES, lively_family
from oracle import oracle_edit
from tiny import byte_level_tokenizer, metaspace_tokenizer, tiny_second_moment

import rome_fast
from rome_fast import window
from rome_fast.models import ModelSpec

TOKENIZERS = {"byte-level": byte_level_tokenizer, "metaspace": metaspace_tokenizer}
# Conv1D; rotary; a norm after the MLP; ALiBi; a window of 4 tokens, shorter than every context.
STRUCTURES = {
    "GPT2": "byte-level",
    "Llama": "metaspace",
    "Gemma2": "metaspace",
    "Bloom": "byte-level",
    "Mistral": "metaspace",
}
# Each block above the edited one carries an offset 3 tokens on: two, and it reaches the target.
CHANGES = {"Gemma2": {"num_hidden_layers": 4}, "Mistral": {"num_hidden_layers": 4}}
CONTEXTS = ["{}", "The weather was fine. {}", "He is a man. {}"]
SUBJECT = "Marie Curie"  # four tokens or more
PROMPTS = {
    "first": "{} is in",
    "middle": "The mother of {} is",
    "last": "We drink tea with {}",
}
TARGETS = {1: "capital", 3: "Paris"}
FACT_TOKENS = ["subject_last", "subject_first", "subject_first_after_last", "last"]
STEPS = 5
RTOL = 1e-4

pytestmark = pytest.mark.filterwarnings("ignore::rome_fast.errors.EditWarning")


@cache
def built(family, tokenizer):
    if family == "Mpt" and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("transformers 4 cannot run MPT in float64, as the oracle does")
    tok = TOKENIZERS[tokenizer]()
    return lively_family(family, len(tok), **CHANGES.get(family, {})), tok


@pytest.fixture
def values(monkeypatch):
    """The values that the library finds, in order: a result does not carry them."""
    found, own = [], window.optimize_values

    def spy(*args):
        found.extend(own(*args))
        return found[-args[2].n_edits :]

    monkeypatch.setattr(window, "optimize_values", spy)
    return found


def case(place="middle", n_target=3, subject=SUBJECT):
    return {"prompt": PROMPTS[place], "subject": subject, "target_new": TARGETS[n_target]}


def moment_of(model, layer):
    projection = ModelSpec.of(model).down_projection(layer)
    return tiny_second_moment(projection.d_key), projection.name


def options(model, layer, **hparams):
    matrix, _ = moment_of(model, layer)
    return {
        "hparams": rome_fast.RomeHparams(
            layers=[layer], v_num_grad_steps=STEPS, variant="original", **hparams
        ),
        "second_moment": rome_fast.SecondMoment.from_moment(matrix, 10_000),
        "context_templates": CONTEXTS,
    }


def expected_of(model, tok, request, layer, **more):
    matrix, name = moment_of(model, layer)
    return oracle_edit(
        model,
        tok,
        prompt=request["prompt"],
        subject=request["subject"],
        target=request["target_new"],
        context_templates=CONTEXTS,
        second_moment=matrix,
        down_projection=name,
        steps=STEPS,
        **more,
    )


def off_by(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def assert_exact(result, value, expected):
    """That the search was the short one, that it moved something, and that it is exact."""
    assert not value.obstacle and not any("whole model" in text for text in result.warnings)
    assert len(expected.losses) == STEPS
    moved = max(abs(loss - expected.losses[0]) for loss in expected.losses)
    assert moved > 5 * RTOL * expected.losses[0]
    assert result.losses == pytest.approx(expected.losses, rel=RTOL)
    assert off_by(value.value_delta, expected.delta) <= RTOL


def check(model, tok, request, values, layer=1, fact_token="subject_last", clamp=4.0):
    expected = expected_of(model, tok, request, layer, fact_token=fact_token, clamp=clamp)
    settings = options(model, layer, fact_token=fact_token, clamp_norm_factor=clamp)
    with rome_fast.trial(model, tok, request, **settings) as result:
        assert_exact(result, values[-1], expected)
    assert off_by(result.update.dense(), expected.dense) <= RTOL


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, tokenizer, values):
    check(*built(family, tokenizer), case(), values)


@pytest.mark.parametrize("fact_token", FACT_TOKENS)
@pytest.mark.parametrize("n_target", TARGETS)
@pytest.mark.parametrize("place", PROMPTS)
@pytest.mark.parametrize("family", STRUCTURES)
def test_every_place_target_and_fact_token(family, place, n_target, fact_token, values):
    model, tok = built(family, STRUCTURES[family])
    check(model, tok, case(place, n_target), values, fact_token=fact_token)


@pytest.mark.parametrize("n_target", TARGETS)
@pytest.mark.parametrize("place", PROMPTS)
@pytest.mark.parametrize("family", STRUCTURES)
def test_the_first_layer(family, place, n_target, values):
    """Nothing lies below the edited block that could be handed over. The ball is narrow."""
    model, tok = built(family, STRUCTURES[family])
    check(model, tok, case(place, n_target), values, layer=0, clamp=0.5)


@pytest.mark.parametrize("n_target", TARGETS)
@pytest.mark.parametrize(
    ("place", "fact_token"),
    [("last", "subject_last"), ("last", "subject_first_after_last"), ("middle", "last")],
)
@pytest.mark.parametrize("family", STRUCTURES)
def test_the_last_layer(family, place, fact_token, n_target, values):
    """Its offset reaches no other position: the lookup must end the prompt."""
    model, tok = built(family, STRUCTURES[family])
    last = ModelSpec.of(model).n_layers - 1
    check(model, tok, case(place, n_target), values, layer=last, fact_token=fact_token)


@pytest.mark.parametrize("pad", [None, "unk_token"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", STRUCTURES)
def test_every_padding_habit(family, side, pad, values):
    model, tok = built(family, STRUCTURES[family])
    tok = copy.deepcopy(tok)
    tok.padding_side = side
    if pad is not None:
        tok.pad_token = getattr(tok, pad)
    check(model, tok, case(), values)
    assert tok.padding_side == side


@pytest.mark.parametrize("family", STRUCTURES)
def test_requests_of_a_window_are_exact_each(family, values):
    """Of three lengths, searched at once: to the end, and with ends at different steps."""
    model, tok = built(family, STRUCTURES[family])
    subjects = {"middle": SUBJECT, "first": "Ada Lovelace", "last": "Eiffel Tower"}
    requests = [case(place, 3, subject) for place, subject in subjects.items()]
    requests[1]["target_new"] = TARGETS[1]
    expected = [expected_of(model, tok, request, 1) for request in requests]
    settings = {**options(model, 1), "order": "independent", "window": 3, "progress": False}
    with rome_fast.trial(model, tok, requests, **settings) as results:
        assert [result.window for result in results] == [3, 3, 3]
    of_losses = {value.losses: value for value in values}  # they are searched in another order
    for result, oracle in zip(results, expected, strict=True):
        assert_exact(result, of_losses[result.losses], oracle)
    losses = sorted(loss for oracle in expected for loss in oracle.losses)
    enough = sum(losses[STEPS : STEPS + 2]) / 2
    settings["hparams"] = settings["hparams"].replace(v_stop_loss=enough)
    with rome_fast.trial(model, tok, requests, **settings) as results:
        assert len({len(result.losses) for result in results}) > 1
    for result, oracle in zip(results, expected, strict=True):
        n_steps = next((i for i, loss in enumerate(oracle.losses, 1) if loss < enough), STEPS)
        assert result.losses == pytest.approx(oracle.losses[:n_steps], rel=RTOL)
