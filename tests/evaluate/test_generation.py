"""Continuations against decoding one by one without a cache; fluency and consistency by hand."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from families import FAMILIES, lively_family
from helpers import same_bits, state
from structures import STRUCTURES
from tiny import tiny_gpt2

from rome_fast.errors import InvalidArgumentError, InvalidRequestError, NonFiniteError
from rome_fast.evaluate import scoring
from rome_fast.evaluate.generation import generate, ngram_entropy, reference_score, words
from rome_fast.evaluate.scoring import Trial
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.greedy import greedy_continuations
from rome_fast.prompt.ids import decode
from rome_fast.types import RankOneUpdate

PROMPTS = [
    "He is",
    "The Eiffel Tower is in the city of",
    "Therefore the capital of Japan",
    "Ada",
    "The mother tongue of Danielle Darrieux is ",
]


@torch.no_grad()
def one_by_one(model, ids, n_tokens, stop=()):
    """Greedy tokens after ids, a whole forward for each."""
    row = list(ids)
    for _ in range(n_tokens):
        token = int(model(torch.tensor([row])).logits[0, -1].argmax())
        if token in stop:
            break
        row.append(token)
    return row[len(ids) :]


def expected(model, tok, n_tokens, stop=()):
    rows = [tok(prompt.rstrip(" "))["input_ids"] for prompt in PROMPTS]
    return [decode(tok, one_by_one(model, ids, n_tokens, stop)) for ids in rows]


@pytest.mark.covering
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_texts_are_those_of_greedy_decoding_one_by_one(tiny, monkeypatch, batch_tokens):
    model, tok = tiny
    monkeypatch.setattr(scoring, "BATCH_TOKENS", {"cpu": batch_tokens})
    assert generate(model, tok, PROMPTS, 12) == expected(model, tok, 12)


def test_nothing_of_the_users_is_obeyed_changed_or_warned_about(tiny, caplog, recwarn):
    model, tok = tiny
    wanted = expected(model, tok, 8)
    model.generation_config.update(repetition_penalty=5.0, temperature=0.1, max_new_tokens=2)
    settings, special = model.generation_config.to_dict(), dict(tok.special_tokens_map)
    tok.padding_side = "right"
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert generate(model, tok, PROMPTS, 8) == wanted
    assert not caplog.records and not recwarn.list
    assert model.generation_config.to_dict() == settings
    assert tok.special_tokens_map == special and tok.padding_side == "right"


def test_a_text_ends_where_the_tokenizer_or_the_model_says(tiny):
    model, tok = tiny
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    ids = tok(PROMPTS[0])["input_ids"]
    tokens = one_by_one(model, ids, 8)
    end = next(i for i in range(1, 8) if tokens[i] not in tokens[:i])
    model.generation_config.eos_token_id = [tok.eos_token_id, tokens[end]]
    stop = (tok.eos_token_id, tokens[end])
    texts = generate(model, tok, PROMPTS, 8)
    assert texts == expected(model, tok, 8, stop)
    assert texts[0] == decode(tok, tokens[:end])


def test_a_text_ends_at_the_models_last_position(gpt2):
    model, tok = gpt2
    model.generation_config.eos_token_id = None
    limit = model.config.n_positions
    ids = (tok(PROMPTS[1])["input_ids"] * 20)[: limit - 3]
    short = tok(PROMPTS[0])["input_ids"]
    full, ended, whole = greedy_continuations(model, tok, [[*ids, *ids[:3]], ids, short], 6)
    assert full == tok.decode(one_by_one(model, [*ids, *ids[:3]], 1))
    assert ended == tok.decode(one_by_one(model, ids, 4))
    assert whole == tok.decode(one_by_one(model, short, 6))


@pytest.mark.covering(family=STRUCTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_decodes_padded_rows_as_alone(family):
    model, (_, tok) = lively_family(family, 420), tiny_gpt2()
    rows = [[5, 9, 30], [7] * 4 + [3, 2, 50], [11]]
    texts = greedy_continuations(model, tok, rows, 7)
    named = model.generation_config.eos_token_id
    stop = [tok.eos_token_id, *(named if isinstance(named, list) else [named])]
    assert texts == [tok.decode(one_by_one(model, ids, 7, stop)) for ids in rows]


@pytest.fixture
def updates(tiny):
    """Two drawn updates of layer 1, large enough to change what is said."""
    projection = ModelSpec.of(tiny[0]).down_projection(1)
    generator = torch.Generator().manual_seed(3)
    sizes = projection.d_key, projection.d_value
    drawn = [[torch.randn(n, generator=generator) for n in sizes] for _ in range(2)]
    return projection, [RankOneUpdate(u, 20 * v, projection.weight_layout) for u, v in drawn]


def test_a_trial_says_what_the_model_with_the_update_written_says(tiny, updates):
    model, tok = tiny
    projection, updates = updates
    before = state(model)
    edit_of = [1, 0, -1, 0, 1]
    tried = generate(model, tok, PROMPTS, 6, Trial(projection, updates, edit_of))
    assert same_bits(model, before)
    said = {-1: generate(model, tok, PROMPTS, 6)}
    for number, update in enumerate(updates):
        with torch.no_grad():
            projection.weight.add_(update.dense().to(projection.weight))
            said[number] = generate(model, tok, PROMPTS, 6)
            model.load_state_dict(before)
    assert tried == [said[edit][i] for i, edit in enumerate(edit_of)]
    for rows in ((0, 4), (1, 3)):
        assert any(tried[i] != said[-1][i] for i in rows)


def test_no_prompts_and_no_tokens(gpt2):
    assert generate(*gpt2, [], 5) == []
    assert generate(*gpt2, ["He is"], 0) == [""]


@pytest.mark.parametrize("prompt", [" ", "He is " * 100])
def test_a_prompt_that_cannot_be_continued_is_an_error(gpt2, prompt):
    with pytest.raises(InvalidRequestError, match="tokens, but the model continues 1 to 128"):
        generate(*gpt2, ["He is", prompt], 5)


def test_logits_that_are_not_finite_are_an_error(gpt2):
    model, tok = gpt2
    with torch.no_grad():
        model.transformer.h[2].mlp.c_proj.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="logits are NaN or infinite"):
        generate(model, tok, PROMPTS, 5)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It's 2nd, really.", ["It's", "2nd", ",", "really", "."]),
        ("巴黎是Paris 的一部分。", [*"巴黎是", "Paris", *"的一部分。"]),
        ("東京タワー", list("東京タワー")),
        ("Привет, мир!\n", ["Привет", ",", "мир", "!"]),
        (" \n", []),
    ],
)
def test_words(text, found):
    assert words(text) == found


def test_ngram_entropy_by_hand():
    # Bigrams ab, ba, ab: 2/3 and 1/3. Trigrams aba, bab: one bit.
    h2 = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy(["a b a b"]) == pytest.approx((2 / 3 * h2 + 4 / 3 * 1) / 2)
    # Five words: four bigrams are two bits, three trigrams log2 3.
    assert ngram_entropy(["v w x y z"]) == pytest.approx((4 / 3 + 4 / 3 * math.log2(3)) / 2)
    # Two words: one bigram, no trigram. The mean is over texts.
    assert ngram_entropy(["a b"]) == ngram_entropy(["a"]) == ngram_entropy([""]) == 0
    assert ngram_entropy(["v w x y z", "a"]) == pytest.approx((2 / 3 + 2 / 3 * math.log2(3)) / 2)
    assert ngram_entropy(["no " * 50]) == 0


def test_reference_score_by_hand():
    # Two references: "rome" is in one, "is" in both, "paris" in none.
    rome, both, none = math.log(3 / 2) + 1, 1.0, math.log(3) + 1
    references = ["Rome is", "is"]
    said = (1 * none, 2 * both)  # paris, is
    given = (1 * rome, 2 * both)  # rome, is
    cosine = said[1] * given[1] / math.hypot(*said) / math.hypot(*given)
    assert reference_score(["is", "PARIS is"], references) == pytest.approx(cosine)
    assert reference_score(["is rome is"], references) == pytest.approx(1)
    assert reference_score(["Berlin"], references) == 0
    assert reference_score([""], references) == reference_score([], references) == 0


def test_nothing_to_take_a_mean_of_or_to_compare_with_is_an_error():
    with pytest.raises(InvalidArgumentError, match="texts must not be empty"):
        ngram_entropy([])
    with pytest.raises(InvalidArgumentError, match="references must not be empty"):
        reference_score(["a"], [])
