"""Scores of many questions at once against one plain forward each, and trials against writing."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import REQUEST, same_bits, state
from tiny import SENTENCES

import rome_fast
from rome_fast.errors import InvalidRequestError, NonFiniteError
from rome_fast.evaluate import scoring
from rome_fast.evaluate.records import Question
from rome_fast.evaluate.scoring import Row, Trial, batches, encode_questions, longest_rows, score
from rome_fast.model.spec import ModelSpec
from rome_fast.types import RankOneUpdate

QUESTIONS = [
    Question("The Eiffel Tower is in the city of", "Paris"),
    Question("Steve Jobs was the founder of ", "Apple, a company that makes"),
    Question("He is a", "man"),
    Question("The Eiffel Tower is in the city of", "Rome, near the river"),
    Question("The founder is Steve Jobs", "capital"),
]


def plain(model, tok, question):
    """(log-probabilities, argmax) of the answer's tokens by one unpadded forward."""
    prompt = question.prompt.strip()
    ids = tok(f"{prompt} {question.target}")["input_ids"]
    n = len(tok(prompt)["input_ids"])
    logits = model(torch.tensor([ids])).logits[0, n - 1 : -1].double()
    targets = torch.tensor(ids[n:])
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0], logits.argmax(-1), targets


def agree(scores, model, tok, atol=1e-5):
    for question, found in zip(QUESTIONS, scores, strict=True):
        with torch.no_grad():
            log_probs, argmax, targets = plain(model, tok, question)
        assert found.target_ids == tuple(targets.tolist())
        assert found.argmax_ids == tuple(argmax.tolist())
        assert found.log_probs == pytest.approx(log_probs.tolist(), abs=atol)
        assert found.nll == pytest.approx(-float(log_probs.mean()), abs=atol)


@pytest.mark.covering
@pytest.mark.parametrize("n_tokens", [1, 30, 4096])
def test_scores_are_those_of_one_forward_a_question(tiny, monkeypatch, n_tokens):
    model, tok = tiny
    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", n_tokens)
    agree(score(model, tok, QUESTIONS), model, tok)


def test_padding_side_and_pad_token_do_not_matter(tiny):
    model, tok = tiny
    expected = score(model, tok, QUESTIONS)
    tok.padding_side, tok.pad_token = "left", tok.eos_token
    assert score(model, tok, QUESTIONS) == expected
    assert tok.padding_side == "left"


def test_a_bos_is_put_before_prompts_only(_pristine):
    model, tok = _pristine["llama"]
    for question in encode_questions(model, tok, QUESTIONS):
        assert question.prompt_ids[0] == tok.bos_token_id
        assert tok.bos_token_id not in question.target_ids
    assert tok.decode(encode_questions(model, tok, QUESTIONS)[0].target_ids).strip() == "Paris"


@pytest.fixture
def updates(tiny, settings):
    """Two updates of layer 1, one by a request and one drawn."""
    model, tok = tiny
    with rome_fast.trial(model, tok, REQUEST, **settings) as result:
        u, v, layout = result.update.u, result.update.v, result.update.weight_layout
    generator = torch.Generator().manual_seed(0)
    drawn = (0.1 * torch.randn(x.shape, generator=generator) for x in (u, v))
    return [RankOneUpdate(a.double(), b.double(), layout) for a, b in ((u, v), drawn)]


@pytest.mark.covering
@pytest.mark.parametrize("n_tokens", [30, 4096])
def test_a_trial_is_the_model_with_the_update_written(tiny, updates, monkeypatch, n_tokens):
    model, tok = tiny
    model.double()
    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", n_tokens)
    before = state(model)
    projection = ModelSpec.of(model).down_projection(1)
    edit_of = [1, 0, -1, 0, 0]
    tried = score(model, tok, QUESTIONS, Trial(projection, updates, edit_of))
    assert same_bits(model, before)
    assert len(projection.module._forward_hooks) == 0
    written = {-1: score(model, tok, QUESTIONS)}
    for number, update in enumerate(updates):
        with torch.no_grad():
            projection.weight.add_(update.dense())
            written[number] = score(model, tok, QUESTIONS)
            model.load_state_dict(before)
    for i, edit in enumerate(edit_of):
        assert tried[i].argmax_ids == written[edit][i].argmax_ids
        assert tried[i].log_probs == pytest.approx(written[edit][i].log_probs, abs=1e-9)
    moved = [abs(tried[i].nll - written[-1][i].nll) for i in range(5)]
    assert min(moved[i] for i in (0, 1, 3, 4)) > 1e-3 and moved[2] < 1e-12


def test_equal_texts_run_once(gpt2, monkeypatch):
    model, tok = gpt2
    rows = []
    plain_forward = scoring.logits_at
    monkeypatch.setattr(
        scoring,
        "logits_at",
        lambda m, r, p: rows.append((len(r), len(p))) or plain_forward(m, r, p),
    )
    prompt = "The Eiffel Tower is in the city of"
    asked = [Question(prompt, word) for word in ("a", "the", "a")]
    assert len({encode_questions(model, tok, asked)[i].row for i in range(3)}) == 1
    a, the, again = score(model, tok, asked)
    assert rows == [(1, 1)]
    assert a == again and a.target_ids != the.target_ids and a.argmax_ids == the.argmax_ids
    assert math.exp(a.log_probs[0]) + math.exp(the.log_probs[0]) < 1


def test_texts_that_others_begin_with_are_not_run_again():
    texts = [(0, "a"), (0, "ab"), (0, "abc"), (0, "ad"), (1, "a"), (1, "b"), (0, "ab")]
    rows = [Row(edit, tuple(map(ord, text))) for edit, text in texts]
    found = longest_rows(rows)
    assert [rows.index(found[row]) for row in rows] == [2, 2, 2, 3, 4, 5, 2]


def test_batches_hold_like_lengths_and_every_row_once():
    lengths = [5, 1, 9, 5, 2, 9]
    made = list(batches(lengths, n_tokens=10, n_rows=2))
    assert made == [[1, 4], [0, 3], [2], [5]]
    assert list(batches([], 10, 2)) == []


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (Question(" ", "Paris"), "needs a prompt and an answer"),
        (Question("He is", ""), "needs a prompt and an answer"),
        (Question("He is", "<|endoftext|>"), "tokenises to nothing"),
        (Question(" ".join(SENTENCES), "Paris"), "but the model takes 128"),
    ],
)
def test_a_question_that_cannot_be_asked_is_an_error(gpt2, question, reason):
    with pytest.raises(InvalidRequestError, match=reason):
        score(*gpt2, [*QUESTIONS, question])


def test_logits_that_are_not_finite_are_an_error(gpt2):
    model, tok = gpt2
    with torch.no_grad():
        model.transformer.h[2].mlp.c_proj.bias[0] = float("inf")
    with pytest.raises(NonFiniteError, match="logits are NaN or infinite"):
        score(model, tok, QUESTIONS)


def test_measures_of_a_score():
    right = scoring.Score((3, 4), (math.log(0.5), math.log(0.125)), (3, 4))
    assert right.nll == pytest.approx(math.log(4)) and right.accuracy == 1 and right.exact
    half = scoring.Score((3, 4), (0.0, 0.0), (3, 5))
    assert half.accuracy == 0.5 and not half.exact and half.nll == 0
