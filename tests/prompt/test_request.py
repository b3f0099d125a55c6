"""What a request may be: a template, a text with its subject in it, or a span of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from any_text import BETWEEN, PROPERTY
from hypothesis import assume, given
from hypothesis import strategies as st

from rome_fast import EditRequest
from rome_fast.errors import InvalidRequestError

MESSAGES = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), BETWEEN), max_size=3
)


def test_requests_of_every_peer_mean_the_same():
    plain = EditRequest("Ray Charles, the", "Ray Charles", "violin")
    for request in (
        {"prompt": "{}, the", "subject": "Ray Charles", "target_new": {"str": "violin"}},
        {
            "prompt": "Ray Charles, the",
            "subject": "Ray Charles",
            "target_new": "violin",
            "ground_truth": "piano",
            "locality": {},
        },
        {"prompt": "{}, the", "subject": " Ray Charles ", "target": "violin"},
        {"prompt": "Ray Charles, the", "span": [0, 11], "target": "violin"},
        {
            "case_id": 3,
            "requested_rewrite": {
                "prompt": "{}, the",
                "subject": "Ray Charles",
                "target_new": {"str": "violin"},
            },
        },
        plain,
    ):
        assert EditRequest.parse(request) == plain
    assert plain.prompt == "{}, the"


def test_the_last_occurrence_is_the_subject_unless_a_span_says_otherwise():
    text = "Ada met Ada in"
    assert EditRequest(text, "Ada", "Rome").prompt == "Ada met {} in"
    first = EditRequest(text, "Ada", "Rome", span=(0, 3))
    assert first.prompt == "{} met Ada in"
    assert first == EditRequest(text, target="Rome", span=(0, 3)) == EditRequest(**asdict(first))
    assert first.text == text
    assert EditRequest(text, target="Rome", span=(3, 8)).subject == "met"  # spaces are the prompt's


def test_a_span_is_not_kept():
    request = EditRequest("Ada met Ada in", target="Rome", span=(0, 3))
    fields = {"prompt": "{} met Ada in", "subject": "Ada", "target": "Rome", "chat": None}
    assert request.to_json() == fields and EditRequest(**fields) == request
    spaced = replace(request, space=False)
    assert spaced.to_json() == {**fields, "space": False}
    assert replace(request, chat=True) == EditRequest("{} met Ada in", "Ada", "Rome", True)


BAD = {
    "another text": (
        {"subject": "Eve", "span": (0, 3)},
        r"span \(0, 3\) holds 'Ada', and the subject is 'Eve': give one",
    ),
    "only spaces": ({"span": (3, 4)}, r"span \(3, 4\) holds ' ', and the subject is ''"),
    "past the end": ({"span": (0, 30)}, r"0 <= start < end <= 14, .*; got \(0, 30\)"),
    "empty": ({"span": (3, 3)}, r"0 <= start < end <= 14, .*; got \(3, 3\)"),
    "negative": ({"span": (-3, 14)}, r"got \(-3, 14\)"),
    "a number": ({"span": 3}, "got 3"),
    "texts": ({"span": ["0", "3"]}, r"got \['0', '3'\]"),
    "no subject": ({}, "request subject is empty: ''"),
    "a blank subject": ({"subject": "  ", "span": (0, 3)}, "request subject is empty: '  '"),
    "subject no text": (
        {"subject": None, "span": (0, 3)},
        "subject must be a string, got NoneType",
    ),
    "template and span": (
        {"prompt": "{} met Ada in", "span": (7, 10)},
        r"holds '\{\}' beside the span of 'Ada', .*write it with a space inside: '\{\} met",
    ),
    "two slots": ({"prompt": "{} and {}", "subject": "Ada"}, r"holds 2 slots '\{\}'"),
    "a subject with a slot": (
        {"prompt": "a{}b is", "subject": "a{}b"},
        r"subject holds '\{\}', which is read as .*: 'a\{\}b'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_request_that_contradicts_itself_is_refused(case):
    fields, message = BAD[case]
    with pytest.raises(InvalidRequestError, match=message):
        EditRequest(**{"prompt": "Ada met Ada in", "target": "Rome", **fields})


@PROPERTY
@given(before=BETWEEN, subject=BETWEEN, after=BETWEEN, target=BETWEEN, chat=st.none() | MESSAGES)
def test_a_request_survives_json(before, subject, after, target, chat):
    subject = subject.strip()
    text = before + subject + after
    assume(subject and target.strip() and "{}" not in text)
    span = len(before), len(before) + len(subject)
    request = EditRequest(text, target=target, span=span, chat=chat)
    assert request.text == text
    assert request.prompt == before + "{}" + after
    again = EditRequest(**json.loads(json.dumps(asdict(request))))
    assert again == request
    assert hash(again) == hash(request)
