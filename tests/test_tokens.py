"""The subject's token and the target's ids, with tokenizers that differ in every habit."""

from __future__ import annotations

import pytest
import torch
from shared_data import shared
from tiny import tiny_gpt2, tiny_llama
from tokenizers import processors
from transformers import AutoTokenizer

from rome_fast import EditRequest
from rome_fast.errors import TokenizerMismatchError
from rome_fast.tokens import encode, find_target_ids, locate_subject, pad_right


@pytest.fixture(scope="module")
def gpt2_tok():
    return AutoTokenizer.from_pretrained(shared("tokenizers/gpt2"))


TOKENIZERS = {"bytes": lambda: tiny_gpt2()[1], "metaspace": lambda: tiny_llama()[1]}


@pytest.fixture(params=TOKENIZERS, scope="module")
def tok(request):
    return TOKENIZERS[request.param]()


PROMPTS = [
    ("{} plays the", "Ray Charles"),
    ("The instrument of {} is the", "Ray Charles"),
    ("The founder is {}", "Steve Jobs"),
    ('"{}" is a', "Ada"),
    ("({}, born", "Megan"),
    ("中国的首都{}是", "北京"),
    ("يقع {} في", "برج إيفل"),
    ("Die Stadt {} liegt", "Köln"),
    ("Ray Charles met {} and", "Ray Charles"),
    ("x{}y", "Zoë"),
]


@pytest.mark.parametrize(("prompt", "subject"), PROMPTS)
def test_last_subject_token_completes_the_subject(tok, prompt, subject):
    ids, index = locate_subject(tok, prompt, subject, "subject_last")
    wanted = prompt.split("{}")[0] + subject
    plain = "".join(wanted.split())
    upto = "".join(tok.decode(ids[: index + 1]).replace("<s>", "").split())
    before = "".join(tok.decode(ids[:index]).replace("<s>", "").split())
    assert upto.startswith(plain)
    assert not before.startswith(plain)
    assert ids == tok(prompt.replace("{}", subject)).input_ids


def test_known_ids_of_the_real_gpt2_tokenizer(gpt2_tok):
    ids, index = locate_subject(gpt2_tok, "{} was the founder of", "Steve Jobs", "subject_last")
    assert ids[: index + 1] == [19206, 19161]
    tokens = encode(gpt2_tok, EditRequest("{} was the founder of", "Steve Jobs", "Apple"), ["{}"])
    assert tokens.subject_token == " Jobs"
    assert tokens.target_tokens == (" Apple",)
    assert gpt2_tok.decode(tokens.prompt_ids) == "Steve Jobs was the founder of"


@pytest.mark.parametrize(
    ("fact_token", "expected"),
    [
        ("subject_first", " LeBron"),
        ("subject_last", " James"),
        ("subject_first_after_last", " plays"),
        ("last", " of"),
    ],
)
def test_fact_tokens(gpt2_tok, fact_token, expected):
    text = "In 2010 {} plays the sport of"
    ids, index = locate_subject(gpt2_tok, text, "LeBron James", fact_token)
    assert gpt2_tok.decode([ids[index]]) == expected
    assert (fact_token == "last") == (index == len(ids) - 1)


def test_first_after_last_falls_back_where_nothing_follows(tok):
    ids, index = locate_subject(tok, "The founder is {}", "Ada", "subject_first_after_last")
    assert index == len(ids) - 1


def test_lying_offsets_are_found_out(gpt2_tok):
    class Liar:
        """Reports (0, 0) for every token, as one Llama-3 tokenizer did."""

        is_fast = True
        eos_token = None

        def __call__(self, text, **options):
            encoded = gpt2_tok(text, return_offsets_mapping=True)
            shifted = [(0, len(text))] * len(encoded["input_ids"])
            return {"input_ids": encoded["input_ids"], "offset_mapping": shifted}

        decode = gpt2_tok.decode

    expected = locate_subject(gpt2_tok, "{} plays the", "Ray Charles", "subject_last")
    assert locate_subject(Liar(), "{} plays the", "Ray Charles", "subject_last") == expected


def test_slow_tokenizers_are_read_by_decoding(gpt2_tok):
    class Slow:
        is_fast = False
        eos_token = None
        decode = gpt2_tok.decode

        def __call__(self, text):
            return {"input_ids": gpt2_tok(text)["input_ids"]}

    expected = locate_subject(gpt2_tok, "{} plays the", "Ray Charles", "subject_last")
    assert locate_subject(Slow(), "{} plays the", "Ray Charles", "subject_last") == expected


def test_tokenizer_that_loses_the_subject_is_an_error():
    tok = tiny_llama()[1]

    class Lossy:
        is_fast = False
        eos_token = None
        convert_ids_to_tokens = tok.convert_ids_to_tokens

        def __call__(self, text):
            return {"input_ids": tok(text)["input_ids"]}

        def decode(self, ids):
            return "?" * len(ids)

    with pytest.raises(TokenizerMismatchError, match="do not decode to it"):
        locate_subject(Lossy(), "{} plays", "Ada", "subject_last")


def test_appended_eos_is_not_part_of_a_prompt():
    tok = tiny_llama()[1]
    tok._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    plain = tiny_llama()[1]
    assert tok("Ada").input_ids == [*plain("Ada").input_ids, tok.eos_token_id]
    request = EditRequest("{} is in", "Ada", "old Rome")
    assert torch.equal(
        encode(tok, request, ["{}"]).input_ids, encode(plain, request, ["{}"]).input_ids
    )


def test_newline_at_the_end_belongs_to_the_prompt(tok):
    request = EditRequest("Q: who is {}?\nA:\n", "Ada", "Rome")
    tokens = encode(tok, request, ["{}"])
    assert tokens.prompt_ids.tolist() == tok(request.text).input_ids


def test_target_gets_one_space_and_no_bos(tok):
    prompt = "The founder is"
    for target in ("Rome", " Rome"):
        ids = find_target_ids(tok, prompt, target)
        assert tok(prompt).input_ids + ids == tok("The founder is Rome").input_ids
        assert tok.bos_token_id not in ids or tok.bos_token_id == tok.eos_token_id


def test_chinese_target_gets_no_space(gpt2_tok):
    ids = find_target_ids(gpt2_tok, "中国的首都是", "上海")
    assert gpt2_tok.decode(ids) == "上海"


def test_trailing_space_of_a_prompt_is_the_targets_own(tok):
    spaced = encode(tok, EditRequest("{} is in ", "Ada", "Rome"), ["{}"])
    plain = encode(tok, EditRequest("{} is in", "Ada", "Rome"), ["{}"])
    assert torch.equal(spaced.input_ids, plain.input_ids)
    assert torch.equal(spaced.target_ids, plain.target_ids)


def test_rows_and_labels_line_up(tok):
    """The positions that the loss reads predict the target's tokens, in every row."""
    contexts = ["{}", "The weather was fine in the north. {}", "It is. {}"]
    request = EditRequest("The mother tongue of {} is", "Danielle Darrieux", "old computing")
    tokens = encode(tok, request, contexts)
    n_target = len(tokens.target_ids)
    assert n_target > 1
    for row in range(tokens.n_contexts):
        length = int(tokens.attention_mask[row].sum())
        ids = [*tokens.input_ids[row, :length].tolist(), int(tokens.target_ids[-1])]
        start = int(tokens.target_start[row])
        assert ids[start + 1 : start + 1 + n_target] == tokens.target_ids.tolist()
        assert len(ids) == start + 1 + n_target
        text = contexts[row].replace("{}", request.text) + " old computing"
        assert ids == tok(text).input_ids
    kl_row = tokens.input_ids[tokens.n_contexts]
    kl_length = int(tokens.attention_mask[tokens.n_contexts].sum())
    assert kl_row[:kl_length].tolist() == tok("Danielle Darrieux is a").input_ids


def test_pad_right():
    ids, mask = pad_right([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


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
    assert EditRequest("Ada met Ada in", "Ada", "Rome").prompt == "Ada met {} in"
