"""The target's ids: its space, by script and by what meets at the border, and nothing twice."""

from __future__ import annotations

import pytest
import trained_tokenizers
from any_text import BETWEEN, PROPERTY
from hypothesis import assume, given
from hypothesis import strategies as st
from shared_data import shared, shared_model
from tiny import tiny_llama
from trained_tokenizers import ALL, FAITHFUL
from transformers import AutoTokenizer

import rome_fast
from rome_fast import EditRequest
from rome_fast.errors import EditWarning, InvalidRequestError
from rome_fast.prompt import target
from rome_fast.prompt.border import space_between
from rome_fast.prompt.encode import encode
from rome_fast.prompt.ids import decode, text_ids
from rome_fast.prompt.target import Asked, continuations, find_target_ids


@pytest.fixture(params=ALL, scope="module")
def tok(request):
    return ALL[request.param]()


SPACED = [
    ("The founder is", "Rome"),
    ("서울은 대한민국의", "수도"),
    ("يقع البرج في", "باريس"),
    ("העיר היא", "ירושלים"),
    ("Die Stadt am Rhein heißt", "Köln"),
    ("I like", "🍕"),
    ("Her favourite is 🍕", "pizza"),
    ("He said:", '"Rome"'),
    ("It is called 'Ada'", "here"),
    ('It is called "Ada"', "here"),
    ("It is called „Ada“", "here"),
    ("The answer -", "Rome"),
    ("The answer:\n-", "Rome"),
    ("It runs on", ".NET"),
    ("The list is", "[1, 2]"),
    ("It was 50%", "more"),
    ("The brackets (Ada)", "close"),
]
UNSPACED = [
    ("中国的首都是", "上海"),
    ("中国的首都是", "Rome"),
    ("The capital is", "上海"),
    ("首都:", "上海"),
    ("他说「", "Rome"),
    ("日本の首都は", "東京"),
    ("か\u3099", "か"),
    ("เมืองหลวงคือ", "กรุงเทพ"),
    ("ນະຄອນຫຼວງ", "ວຽງຈັນ"),
    ("រាជធានី", "ភ្នំពេញ"),
    ("မြို့တော်", "နေပြည်တော်"),
    ("The founder (", "Ada"),
    ('She said "', "Rome"),
    ("She said «", "Rome"),
    ("She said „", "Rome"),
    ("She said '", "Rome"),
    ("a well-", "known"),
    ("the capital of l'", "Italie"),
    ("a man named O\u2019", "Brien"),
    ("The founder is Ada", "."),
    ("The founder is Ada", "'s"),
    ("The founder (Ada", ")"),
    ("Is it", "؟"),
    ("cafe", "\u0301"),
    ("The founder is\n", "Rome"),
    ("The founder is", " Rome"),
    ("The founder is\t", "Rome"),
]


SPACED += [
    ("x =", "5"),
    ("He met Dr.", "Smith"),
    ("That was in 1990.", "Then"),
    ("He said so.", "then"),
    ("She got an A+", "grade"),
    ("I like C++", "code"),
    ("He wrote it in C#", "first"),
    ("# List\n#", "Title"),
    ("##", "Title"),
    ("$", "ls"),
    ("The capital is ____", "Rome"),
    ("x = 1 //", "counts"),
    ("See https://x.org.", "Then"),
    ("The price is 5 -", "dollars"),
    ("Write to all @ ", "once"),
    ("The price is $ ", "20"),
    ("x.", "y"),
]
UNSPACED += [
    ("import numpy as np\nx = np.", "quux"),
    ("foo(bar).", "baz"),
    ("std::", "vector"),
    ("The price of bread is $", "20"),
    ("The price of bread is €", "20"),
    ("It costs £", "20"),
    ("It costs 200 ¥", "20"),
    ("Ticket #", "20"),
    ("He is known as @", "rome"),
    ("Write to ada@example.", "org"),
    ("Read https://example.", "org"),
    ("Read https://example.org/", "about"),
    ("https://x.org/?q=", "rome"),
    ("https://x.org/?", "q"),
    ("Look into /usr/", "bin"),
    ("Look into C:\\", "Windows"),
    ("Look into ~", "/src"),
    ("cd ./src/lib.", "rs"),
    ("use snake_", "case"),
    ("call obj.__", "init__"),
    ("x=", "5"),
    ("x^", "2"),
    ("2+", "2"),
    ("It is cold: -", "5"),
    ("It is cold: \u2212", "5"),
    ("pi is 3.", "14"),
    ("the years 1939\u2013", "1945"),
    ("a house\u2014", "ours"),
    ("It is 20\xb0", "C"),
    ("\xbf", "Qu\xe9"),
    ("他说《", "红楼梦"),
    ("print(", "x"),
    ("a[", "0"),
]


@pytest.mark.parametrize(("prompt", "text"), SPACED)
def test_a_space_belongs_between(prompt, text):
    assert space_between(prompt, text) == " "


@pytest.mark.parametrize(("prompt", "text"), UNSPACED)
def test_no_space_belongs_between(prompt, text):
    assert space_between(prompt, text) == ""


def test_target_gets_one_space_and_no_bos(tok):
    prompt = "The founder is"
    for text in ("Rome", " Rome"):
        ids = find_target_ids(tok, prompt, text)
        assert text_ids(tok, prompt) + ids == text_ids(tok, "The founder is Rome")
        assert decode(tok, ids).strip().lower() == "rome"


@pytest.mark.covering
@pytest.mark.parametrize("name", FAITHFUL)
@pytest.mark.parametrize(("prompt", "text"), SPACED + UNSPACED)
def test_prompt_and_target_decode_to_the_text(name, prompt, text):
    tok = ALL[name]()
    ids = text_ids(tok, prompt) + find_target_ids(tok, prompt, text)
    assert decode(tok, ids) == prompt + space_between(prompt, text) + text


@PROPERTY
@given(name=st.sampled_from(FAITHFUL), prompt=BETWEEN, text=BETWEEN)
def test_any_prompt_and_target_decode_to_the_text(name, prompt, text):
    tok, prompt = ALL[name](), prompt.strip(" ")
    assume(text.strip() and prompt.strip())
    ids = text_ids(tok, prompt) + find_target_ids(tok, prompt, text)
    assert decode(tok, ids) == prompt + space_between(prompt, text) + text


def test_the_space_is_shown_whatever_the_tokenizer(tok):
    tokens = encode(tok, EditRequest("{} is in", "Ada", "Rome"), ["{}"])
    assert "".join(tokens.target_tokens).lower() == " rome"
    assert tokens.findings == ()


@pytest.mark.parametrize("name", ["bytes", "metaspace", "slow", "unigram", "offsets that lie"])
def test_a_chinese_target_has_no_space_to_show(name):
    tokens = encode(ALL[name](), EditRequest("中国的首都{}是", "北京", "上海"), ["{}"])
    shown = "".join(tokens.target_tokens)
    assert shown.replace("\ufffd", "") == "上海"
    assert tokens.findings == ()


@pytest.fixture
def merging():
    """A tokenizer with a dummy prefix, and with one token for "首都是上海"."""
    texts = (*trained_tokenizers.SENTENCES, *["首都是上海", "首都是", "上海"] * 20)
    return trained_tokenizers.byte_fallback(texts)


def test_a_target_that_merges_with_its_prompt_is_tokenised_on_its_own(merging):
    prompt_ids, joint_ids = text_ids(merging, "首都是"), text_ids(merging, "首都是上海")
    assert joint_ids[: len(prompt_ids)] != prompt_ids
    alone = merging("上海", add_special_tokens=False).input_ids
    assert decode(merging, prompt_ids + alone) == "首都是 上海"  # the dummy prefix would be a space
    [found] = continuations(merging, [Asked("首都是", "上海")])
    assert found.is_exact and found.prompt_ids == prompt_ids
    assert decode(merging, prompt_ids + found.target_ids) == "首都是上海"


def test_tokens_that_say_something_else_are_shown(merging, monkeypatch):
    monkeypatch.setattr(target, "_ANCHORS", ())
    tokens = encode(merging, EditRequest("{}是", "首都", "上海"), ["{}"])
    [finding] = tokens.findings
    assert finding == "target '上海' is [' 上海'] in the tokens of this tokenizer"
    unknown = encode(ALL["wordpiece"](), EditRequest("{} plays the", "Ada", "old 🎻"), ["{}"])
    assert unknown.findings[0].startswith("target ' old 🎻' is [' ol")


def test_what_the_tokens_say_is_a_warning_of_the_result(settings):
    model, tok = tiny_llama()  # its byte tokens are special ones, so that no text shows them
    request = {"prompt": "The founder is {}", "subject": "Ada", "target_new": "old 🎻"}
    with pytest.warns(EditWarning, match=r"target ' old 🎻' is \[' old'"):
        result = rome_fast.edit(model, tok, request, **settings)
    assert any("in the tokens of this tokenizer" in text for text in result.warnings)


@pytest.mark.parametrize("text", ["<s>", "</s>", "<s></s>"])
def test_a_target_of_special_tokens_is_refused(text):
    with pytest.raises(InvalidRequestError, match=f"target '{text}' tokenises to nothing"):
        find_target_ids(ALL["metaspace"](), "The founder is", text)


def test_real_tokenizers_put_spaces_where_they_belong():
    gpt2 = AutoTokenizer.from_pretrained(shared("tokenizers/gpt2"))
    for prompt, text in SPACED + UNSPACED:
        ids = text_ids(gpt2, prompt) + find_target_ids(gpt2, prompt, text)
        assert decode(gpt2, ids) == prompt + space_between(prompt, text) + text


def test_the_tokenizer_of_stories260k_shows_the_space():
    _, tok = shared_model()
    tokens = encode(tok, EditRequest("a girl named {} had a", "Lily", "red ball"), ["{}"])
    assert "".join(tokens.target_tokens) == " red ball"
    assert tokens.prompt_ids[0] == tok.bos_token_id
    tokens = encode(tok, EditRequest("{}的首都是", "中国", "上海"), ["{}"])
    assert "".join(tokens.target_tokens).replace("\ufffd", "") == "上海"


@pytest.mark.parametrize("space", [True, False])
def test_the_request_may_say_whether_there_is_a_space(tok, space):
    said = {"prompt": "{} is in", "subject": "Ada", "target_new": " Rome", "space": space}
    request = EditRequest.parse(said)
    joined = "".join(encode(tok, request, ["{}"]).target_tokens)
    assert joined.startswith(" ") is space and joined.strip().lower() == "rome"


def test_a_space_is_true_false_or_nothing():
    with pytest.raises(InvalidRequestError, match="space must be true, false or nothing, got 'no'"):
        EditRequest("{} is in", "Ada", "Rome", space="no")


def test_a_special_token_in_a_target_is_shown_by_its_name(tok):
    [name] = tok.all_special_tokens[:1]
    tokens = encode(tok, EditRequest("{} is in", "Ada", f"Rome{name}"), ["{}"])
    assert tokens.target_ids[-1] == tok.all_special_ids[0]
    assert tokens.target_tokens[-1] == name and tokens.findings == ()
