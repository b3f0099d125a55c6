"""Requests in all contexts: as a question, and in the other form, each with its own answer."""

from __future__ import annotations

import math

import pytest
from chat_templates import CHATML, with_template
from helpers import CONTEXTS, REQUEST, same_bits, state

import rome_fast
from rome_fast import EditRequest
from rome_fast.errors import ChatTemplateError, EditWarning, HparamsError
from rome_fast.prompt.chat import Chat, Frame
from rome_fast.prompt.contexts import QUESTION_CONTEXTS
from rome_fast.prompt.encoder import Encoder
from rome_fast.prompt.ids import text_ids
from rome_fast.prompt.readback import read_targets
from rome_fast.prompt.target import Asked, continuations

PLAIN = EditRequest.parse(REQUEST)
CHAT = EditRequest(PLAIN.prompt, PLAIN.subject, PLAIN.target, chat=True)


def encoded(model, tok, hparams, request, **changes):
    encoder = Encoder(model, tok, hparams.replace(**changes), CONTEXTS)
    [tokens] = encoder([(request,)])
    return tokens


def rows_of(tokens):
    pairs = zip(tokens.input_ids, tokens.attention_mask.sum(1), strict=True)
    return [ids[:n].tolist() for ids, n in pairs]


@pytest.fixture
def chatting(gpt2):
    model, tok = gpt2
    return model, with_template(tok, CHATML)


def test_text_contexts_are_those_that_are_given(chatting, hparams):
    tokens = encoded(*chatting, hparams, PLAIN)
    assert tokens.n_contexts == len(CONTEXTS) and not tokens.kept


def test_a_plain_prompt_is_also_put_as_a_question_and_in_a_chat(chatting, hparams):
    model, tok = chatting
    tokens = encoded(model, tok, hparams, PLAIN, contexts="all")
    assert tokens.n_contexts == len(CONTEXTS) + len(QUESTION_CONTEXTS)
    rows, said = rows_of(tokens), tokens.target_ids.tolist()
    for row, context in zip(rows[len(CONTEXTS) :], QUESTION_CONTEXTS, strict=False):
        assert row == text_ids(tok, context.replace("{}", PLAIN.text)) + said[:-1]
    [fact] = tokens.kept
    [asked] = continuations(tok, [Asked(PLAIN.text, PLAIN.target, Chat(), None)])
    assert rows[fact.row] == [*asked.prompt_ids, *asked.target_ids[:-1]]
    assert fact.target_ids == tuple(asked.target_ids)
    assert tok.decode(rows[fact.row]).startswith(Frame.of(tok, Chat()).before)


def test_a_prompt_in_a_chat_is_also_put_as_a_plain_one(chatting, hparams):
    model, tok = chatting
    tokens = encoded(model, tok, hparams, CHAT, contexts="all")
    assert tokens.n_contexts == len(CONTEXTS)
    [fact] = tokens.kept
    assert rows_of(tokens)[fact.row][: fact.start + 1] == text_ids(tok, PLAIN.text)


def test_without_a_template_there_is_no_chat_to_put_it_in(gpt2, hparams):
    tokens = encoded(*gpt2, hparams, PLAIN, contexts="all")
    assert tokens.n_contexts == len(CONTEXTS) + len(QUESTION_CONTEXTS) and not tokens.kept


def test_kmeng01s_update_is_searched_behind_texts(chatting, hparams):
    tokens = encoded(*chatting, hparams, PLAIN, contexts="all", variant="original")
    assert tokens.n_contexts == len(CONTEXTS) and not tokens.kept


def test_each_request_is_encoded_once(chatting, hparams):
    encoder = Encoder(*chatting, hparams, CONTEXTS)
    [first] = encoder([(PLAIN,)])
    again, other = encoder([(PLAIN,), (CHAT,)])
    assert again is first and other is not first


def test_an_edit_in_all_contexts_is_nearer_to_the_target_in_all(chatting, hparams):
    """The mean over questions and chat, with the value written for all and for the text alone."""
    model, tok = chatting
    before = state(model)
    put = [context.replace("{}", PLAIN.text) for context in QUESTION_CONTEXTS]
    asked = [Asked(text, PLAIN.target, None, None) for text in put]
    asked.append(Asked(PLAIN.text, PLAIN.target, Chat(), None))
    found = continuations(tok, asked)
    nll = {}
    for contexts in ("text", "all"):
        chosen = hparams.replace(contexts=contexts, v_num_grad_steps=12, variant="mean_key")
        options = {"second_moment": "identity", "context_templates": ["{}"]}
        result = rome_fast.edit(model, tok, PLAIN, chosen, **options)
        readings = read_targets(
            model, tok, [c.prompt_ids for c in found], [c.target_ids for c in found]
        )
        nll[contexts] = -sum(math.log(reading.prob) for reading in readings)
        result.revert()
        assert same_bits(model, before)
    assert nll["all"] < nll["text"] - 1


def test_what_is_asked_for_wrongly_is_named(chatting, hparams):
    with pytest.raises(HparamsError, match=r"contexts must be one of \('text', 'all'\)"):
        hparams.replace(contexts="chat")
    model, tok = chatting
    tok.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(ChatTemplateError):
        encoded(model, tok, hparams, PLAIN, contexts="all")


def test_a_long_target_is_named_before_anything_is_searched(gpt2, hparams, recwarn):
    long = EditRequest(PLAIN.prompt, PLAIN.subject, "one two three four five six seven eight nine")
    encoder = Encoder(*gpt2, hparams, CONTEXTS)
    encoder([(PLAIN,)])
    assert not recwarn.list
    with pytest.warns(EditWarning, match=r"target 'one two .* tokens, and 5 steps seldom find"):
        encoder([(long,)])
    encoder([(EditRequest(PLAIN.prompt, "Ada", long.target),)])  # said once
    Encoder(*gpt2, hparams.replace(v_num_grad_steps=100), CONTEXTS)([(long,)])
    assert not recwarn.list
