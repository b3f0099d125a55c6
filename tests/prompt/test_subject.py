"""Where a text names its subject: whole words first, any normal form, positions of the text."""

from __future__ import annotations

import random
import unicodedata

import pytest

from rome_fast import EditRequest
from rome_fast.errors import SubjectNotFoundError
from rome_fast.prompt.subject import cuts_a_word, find_subject


@pytest.mark.parametrize(
    ("text", "subject", "place"),
    [
        ("Niger borders Nigeria", "Niger", (0, 5)),
        ("Nigeria borders Niger", "Niger", (16, 21)),
        ("Niger and Niger, not Nigeria", "Niger", (10, 15)),
        ("Nigeria", "Niger", (0, 5)),
        ("Apollo 1 came before Apollo 11", "Apollo 1", (0, 8)),
        ("call np.x of np_array", "np", (5, 7)),
        ("Мир и Миргород", "Мир", (0, 3)),
        ("東京は東京都", "東京", (3, 5)),
        ("서울은 서울의 일부", "서울", (4, 6)),
        ("non Niger", "on", (1, 3)),
        ("Paris", "London", None),
    ],
)
def test_whole_words_come_first(text, subject, place):
    assert find_subject(text, subject) == place


@pytest.mark.parametrize(
    ("text", "subject", "is_cut"),
    [
        ("Nigeria is", "Niger", True),
        ("the subNiger is", "Niger", True),
        ("Niger's capital", "Niger", False),
        ("(Niger)", "Niger", False),
        ("Ninety-Niger", "Niger", False),
        ("e\u0301", "e", True),
        ("서울은", "서울", False),
        ("والنيجر", "النيجر", False),
    ],
)
def test_a_part_of_a_word_is_said(text, subject, is_cut):
    start = text.index(subject)
    assert cuts_a_word(text, (start, start + len(subject))) is is_cut
    assert any("part of a word" in r for r in EditRequest(text, subject, "x").findings()) is is_cut


@pytest.mark.parametrize(("of_prompt", "of_subject"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_other_normal_forms_are_found_and_said(of_prompt, of_subject):
    prompt = unicodedata.normalize(of_prompt, "In S\xe3o Tom\xe9 people speak")
    request = EditRequest(prompt, unicodedata.normalize(of_subject, "S\xe3o Tom\xe9"), "Dutch")
    assert request.text == prompt and request.prompt == "In {} people speak"
    assert ["normal form" in remark for remark in request.findings()] == [True]
    assert EditRequest(prompt, request.subject, "Dutch").findings() == []


@pytest.mark.parametrize(
    ("text", "subject", "said"),
    [
        ("Stra\xdfe, Stra\xdfe, steve jobs", "Steve Jobs", "'steve jobs' at 16; the case differs"),
        ("\u0130zmir and STRASSE here", "Stra\xdfe", "'STRASSE' at 10; the case differs"),
        ("Steven Jobs", "Steve Jobs", "nearest match: 'Steve' at 0"),
    ],
)
def test_the_nearest_match_is_where_it_is_said_to_be(text, subject, said):
    with pytest.raises(SubjectNotFoundError, match=said):
        EditRequest(text, subject, "x")


def test_random_texts_hold_what_is_found():
    drawn = random.Random(0)
    alphabet = [
        "a",
        "B",
        "\xe9",
        "e\u0301",
        "\u0301",
        "\xdf",
        "\u0130",
        "\uac00",
        "\u6771",
        " ",
        "1",
    ]
    for _ in range(3000):
        text = "".join(drawn.choices(alphabet, k=12))
        start = drawn.randrange(11)
        subject = text[start : start + drawn.randint(1, 3)]
        form = drawn.choice(["NFC", "NFD", None])
        asked = subject if form is None else unicodedata.normalize(form, subject)
        found = find_subject(text, asked)
        if found is None:
            # Another form may join a mark to what stands before it.
            assert form == "NFC" or asked != subject
            continue
        same = [unicodedata.normalize("NFD", t) for t in (text[slice(*found)], asked)]
        assert same[0] == same[1]
