"""What follows a target: asked for by name, or as the model itself would write it."""

import copy
import math

import pytest
import torch
from helpers import CONTEXTS, REQUEST

import rome_fast
from rome_fast import EditRequest
from rome_fast.errors import HparamsError, InvalidRequestError
from rome_fast.evaluate.generation import generate
from rome_fast.prompt.encode import encode
from rome_fast.prompt.ends import ends_of
from rome_fast.value.batch import EditBatch

FACT = EditRequest.parse(REQUEST)


@pytest.fixture(scope="module")
def toy():
    return rome_fast.demo.load()


def with_end(end, request=FACT):
    return EditRequest(**{**request.to_json(), "end": end})


def end_of(model, tok, request, default="none"):
    [end] = ends_of(model, tok, [request], [encode(tok, request, CONTEXTS)], default)
    return end


def test_the_end_is_read_behind_the_target_in_every_context(gpt2):
    _, tok = gpt2
    plain, ended = encode(tok, FACT, CONTEXTS), encode(tok, FACT, CONTEXTS, end_ids=(7, 9))
    assert ended.said_ids.tolist() == [*plain.target_ids.tolist(), 7, 9]
    assert torch.equal(ended.target_ids, plain.target_ids)
    assert torch.equal(ended.prompt_ids, plain.prompt_ids)
    for i in range(ended.n_contexts):
        start = int(ended.target_start[i]) + 1
        row = ended.input_ids[i, start : int(ended.attention_mask[i].sum())].tolist()
        assert row == ended.said_ids.tolist()[:-1]
    batch = EditBatch.of([ended])
    said = batch.target_ids.reshape(ended.n_contexts, -1)
    assert (said == ended.said_ids).all()
    first = batch.read_positions[: len(ended.said_ids)].tolist()
    start = int(ended.target_start[0])
    assert first == list(range(start, start + len(ended.said_ids)))


def test_none_and_nothing_said_have_no_end(gpt2):
    model, tok = gpt2
    assert end_of(model, tok, FACT) == end_of(model, tok, with_end("none"), default=".") == ()


def test_a_text_is_what_the_tokenizer_writes_behind_the_target(gpt2):
    model, tok = gpt2
    for text in (".", "\n", ", and"):
        ids = end_of(model, tok, with_end(text))
        assert tok.decode(list(ids)) == text
        assert end_of(model, tok, FACT, default=text) == ids


def test_a_text_that_merges_with_the_target_is_refused(gpt2):
    model, tok = gpt2
    with pytest.raises(InvalidRequestError, match=r"end .* put it into the target"):
        target = EditRequest(FACT.prompt, FACT.subject, "th", end="e")
        end_of(model, tok, target)


def test_the_end_of_the_text_needs_a_token(gpt2):
    model, tok = gpt2[0], copy.deepcopy(gpt2[1])
    assert end_of(model, tok, with_end("eos")) == (tok.eos_token_id,)
    tok.eos_token = None
    with pytest.raises(InvalidRequestError, match="'eos', and the tokenizer has no such token"):
        end_of(model, tok, with_end("eos"))


def test_in_a_chat_the_turn_ends(gpt2, monkeypatch):
    model, tok = gpt2
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}|"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    monkeypatch.setattr(tok, "chat_template", template)
    request = EditRequest(**{**FACT.to_json(), "chat": True, "end": "eos"})
    assert tok.decode(list(end_of(model, tok, request))) == "|"


def test_auto_is_what_the_model_writes_where_its_sentence_ends(toy):
    model, tok, facts = toy
    fact = facts[0]
    request = EditRequest(fact.prompt, fact.subject, fact.target_new, end="auto")
    assert tok.decode(list(end_of(model, tok, request))) == "."


@pytest.mark.parametrize(
    ("likely", "end"),
    [
        ({" a": 0.97, ".": 0.03}, ""),
        ({" a": 0.8, ".": 0.2}, "."),
        ({",": 0.7, ".": 0.3}, "."),
        ({",": 0.5, ".": 0.03, " a": 0.47}, ","),
        ({",": 0.05, ".": 0.03, " a": 0.92}, ""),
    ],
)
def test_auto_follows_what_the_model_would_write(gpt2, monkeypatch, likely, end):
    model, tok = gpt2

    def logits_at(model, rows, places):
        logits = torch.full((len(rows), len(tok)), -30.0)
        for text, prob in likely.items():
            logits[:, tok.encode(text)[0]] = math.log(prob)
        return logits

    monkeypatch.setattr("rome_fast.prompt.ends.logits_at", logits_at)
    assert tok.decode(list(end_of(model, tok, with_end("auto")))) == end


def test_an_edit_ends_as_it_was_asked_to(toy):
    model, tok, facts = toy
    fact = facts[3]
    for end in ("auto", "."):
        request = EditRequest(fact.prompt, fact.subject, fact.target_new, end=end)
        result = rome_fast.edit(model, tok, request)
        [said] = generate(model, tok, [request.text], 4)
        result.revert()
        assert said.strip().startswith(fact.target_new + ".")
        assert result.success and result.end == "." and "end '.'" in str(result)


def test_the_hyperparameters_say_what_a_request_does_not(toy):
    model, tok, facts = toy
    fact, hparams = facts[3], rome_fast.RomeHparams.for_model(model)
    request = EditRequest(fact.prompt, fact.subject, fact.target_new)
    for change, end in (({"end": "."}, "."), ({"end": ".", "variant": "original"}, "")):
        result = rome_fast.edit(model, tok, request, hparams.replace(**change))
        result.revert()
        assert result.end == end
    with pytest.raises(HparamsError, match=r"hparams\.end must be auto, none, eos or a text"):
        hparams.replace(end="")


def test_a_request_keeps_its_end():
    assert EditRequest.parse({**REQUEST, "end": "\n"}).end == "\n"
    assert EditRequest(**with_end(".").to_json()) == with_end(".")
    assert "end" not in FACT.to_json()
    for bad in ("", 5):
        with pytest.raises(InvalidRequestError, match="request end"):
            with_end(bad)
