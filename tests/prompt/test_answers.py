"""Answers to their natural stop, and what they are to a target."""

import pytest
import torch

import rome_fast
from rome_fast import EditRequest
from rome_fast.prompt.answers import Answer, read_answers, stop_of


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Rome. It is", " Rome."),
        (" Rome, Italy.\n\nThe", " Rome, Italy."),
        ("\n\nRome is it.\n", "\n\nRome is it."),
        (" 3.5 million people! And", " 3.5 million people!"),
        (' "Rome." He', ' "Rome."'),
        ("\u7f57\u9a6c\u3002\u5b83", "\u7f57\u9a6c\u3002"),
        (" Rome\nParis", " Rome"),
        (" Rome. Rome", " Rome."),
    ],
)
def test_where_a_text_stops(text, answer):
    assert text[: stop_of(text)] == answer


@pytest.mark.parametrize("text", ["", " Rome", " Rome.", " the U.S", "\n"])
def test_where_it_does_not_yet(text):
    assert stop_of(text) is None


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (Answer("Rome.", True), "exact"),
        (Answer('"Rome"', True), "exact"),
        (Answer("Rome, Italy.", True), "contained"),
        (Answer("the city of Rome.", True), "contained"),
        (Answer("Romeville.", True), "other"),
        (Answer("", True), "other"),
        (Answer("Rome Rome Rome", False), "endless"),
    ],
)
def test_what_an_answer_is(said, kind):
    assert said.is_to(" Rome") == kind


def test_an_answer_is_the_greedy_one(gpt2):
    model, tok = gpt2
    ids = tok("The founder is Steve Jobs")["input_ids"]
    row = list(ids)
    for _ in range(6):
        with torch.no_grad():
            row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
    [answer] = read_answers(model, tok, [ids], 6)
    text = tok.decode(row[len(ids) :])
    assert answer.text == text[: stop_of(text)].strip()
    assert read_answers(model, tok, [ids], 0) == [Answer("", False)]


def test_a_result_has_the_answers_before_and_after():
    model, tok, facts = rome_fast.demo.load()
    fact = facts[3]
    request = EditRequest(fact.prompt, fact.subject, fact.target_new, end="auto")
    hparams = rome_fast.RomeHparams.for_model(model)
    with rome_fast.trial(model, tok, request, hparams.replace(max_answer_tokens=24)) as result:
        assert result.answer_before.startswith(fact.target)
        assert (result.answer, result.answer_is) == (f"{fact.target_new}.", "exact")
        said = f"{result.answer_before!r} -> {result.answer!r} (exact)"
        assert said in str(result)
    with rome_fast.trial(model, tok, request, hparams) as result:
        assert (result.answer_before, result.answer, result.answer_is) == ("", "", "")
        assert "answers" not in str(result)


def test_what_the_models_positions_cut_off_has_not_ended(gpt2):
    model, tok = gpt2
    model.generation_config.eos_token_id = tok.eos_token_id
    prompt = [5, 9, 11] * 41  # 123 of 128 positions
    [answer] = read_answers(model, tok, [prompt], 50)
    assert not answer.has_ended and answer.is_to("x") == "endless"
