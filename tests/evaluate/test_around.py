"""What is asked around an edit, and what is found wrong with the answers."""

from __future__ import annotations

import dataclasses

import pytest
from chat_templates import PLAIN, with_template
from helpers import REQUEST

import rome_fast
from rome_fast import EditRequest
from rome_fast.evaluate.around import OTHER_SUBJECTS, Around
from rome_fast.evaluate.generation import generate
from rome_fast.prompt.chat import Chat

FACT = EditRequest.parse(REQUEST)


def test_the_prompt_and_other_subjects_are_asked_before_and_after(gpt2, settings):
    model, tok = gpt2
    prompts = [FACT.text, *(FACT.prompt.replace("{}", name) for name in OTHER_SUBJECTS)]
    before = generate(model, tok, prompts, 20)
    around = Around(model, tok, FACT, OTHER_SUBJECTS)
    with rome_fast.trial(model, tok, FACT, **settings):
        answers, after = around.after(), generate(model, tok, prompts, 20)
    assert [a.prompt for a in answers] == prompts
    assert [a.before for a in answers] == before and [a.after for a in answers] == after
    assert [a.about for a in answers] == [FACT.subject, *OTHER_SUBJECTS]
    assert before[0] != after[0] and not any(a.in_chat for a in answers)


def test_a_plain_prompt_is_asked_in_a_chat_too_where_there_is_a_template(gpt2):
    model, tok = gpt2
    tok = with_template(tok, PLAIN)
    plain, in_chat = Around(model, tok, FACT).after()
    assert (plain.in_chat, in_chat.in_chat) == (False, True)
    assert [in_chat.after] == generate(model, tok, [FACT.text], 20, chats=[Chat()])
    assert str(plain) == f"{plain.before.strip()!r} -> the same"
    [only] = Around(model, tok, dataclasses.replace(FACT, chat=True)).after()
    assert only.in_chat and only.after == in_chat.after


def test_the_edited_subject_is_not_among_the_others(gpt2):
    model, tok = gpt2
    about = EditRequest("The capital of {} is", "Paris, France", "Rome")
    answers = Around(model, tok, about, ["France", "Japan"]).after()
    assert [a.about for a in answers] == ["Paris, France", "Japan"]


@pytest.mark.parametrize(
    ("after", "cause", "said"),
    [
        ("Tokyo, as it was, is", None, ""),
        ("Capital city", "spills", "about Japan is answered with the target now, too"),
        ("the old one", "others change", "about Japan is answered otherwise: 'Tokyo is' -> 'the"),
    ],
)
def test_others_that_answer_otherwise_are_a_finding(gpt2, after, cause, said):
    around = Around(*gpt2, FACT, ["Japan"])
    own, japan = around.after()
    japan = dataclasses.replace(japan, before="Tokyo, as" if cause is None else "Tokyo is")
    found = list(around.findings([own, dataclasses.replace(japan, after=after)]))
    assert [f.cause for f in found] == ([] if cause is None else [cause])
    assert all(said in f.what for f in found)
