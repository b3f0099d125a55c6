"""Random requests in many scripts: the lookup token and the target's ids, against an oracle."""

import random

import pytest
from token_bytes import expected_token
from trained_tokenizers import ALL, FAITHFUL

from rome_fast.errors import InvalidRequestError
from rome_fast.prompt.ids import decode
from rome_fast.prompt.lookup import Passage, locate_subject
from rome_fast.prompt.target import Asked, continuations

N_QUICK, N_ALL = 100, 2_000
ALPHABETS = (
    "abcdefghij ABCDE éèüß",
    "жз щыэ юяф",
    "كتاب هو دار",
    "北京上海是中国的。",
    "ไทยภาษา",
    "हिन्दी भाषा",
    "0123456789.,$€#/_-=",
    "😀👩‍👩‍👧🇫🇷 e\u0301a\u0308",
    " \n\t ()[]{}'\"",
)


def text_of(draw, n_parts):
    return "".join(
        "".join(draw.choices(draw.choice(ALPHABETS), k=draw.randint(1, 8))) for _ in range(n_parts)
    )


def passage_of(draw):
    """A text with a subject that begins and ends with something other than spaces."""
    while True:
        before, subject, after = (text_of(draw, draw.randint(0, 3)) for _ in range(3))
        if subject.strip():
            start = len(before) + len(subject) - len(subject.lstrip())
            return Passage(before + subject + after, start, start + len(subject.strip()))


@pytest.mark.parametrize("name", FAITHFUL)
@pytest.mark.parametrize("n", [N_QUICK, pytest.param(N_ALL, marks=pytest.mark.exhaustive)])
def test_the_lookup_token_is_the_one_that_holds_the_last_byte(name, n):
    tok, wrong = ALL[name](), []
    for seed in range(n):
        passage = passage_of(random.Random(seed))
        ids, index = locate_subject(tok, passage, "subject_last")
        if index != expected_token(tok, ids, passage.text[: passage.end]):
            wrong.append((seed, passage))
    assert wrong == []


@pytest.mark.parametrize("name", FAITHFUL)
@pytest.mark.parametrize("n", [N_QUICK, pytest.param(N_ALL, marks=pytest.mark.exhaustive)])
def test_prompt_and_target_decode_to_the_text(name, n):
    tok, wrong = ALL[name](), []
    for seed in range(n):
        draw = random.Random(seed)
        asked = Asked(text_of(draw, 2), text_of(draw, 1), None, draw.choice((None, True, False)))
        try:
            [found] = continuations(tok, [asked])
        except InvalidRequestError:
            continue  # a target of spaces alone
        said = decode(tok, [*found.prompt_ids, *found.target_ids])
        wanted = decode(tok, tok(asked.prompt.rstrip(" ") + found.text).input_ids)
        if found.is_exact and said.replace(" ", "") != wanted.replace(" ", ""):
            wrong.append((seed, asked, said, wanted))
    assert wrong == []
