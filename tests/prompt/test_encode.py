"""Ids, rows and the subject's token, with tokenizers that differ in every habit."""

from __future__ import annotations

import pytest
import torch
from any_text import BETWEEN, PROPERTY
from hypothesis import assume, given
from hypothesis import strategies as st
from shared_data import shared
from tiny import SENTENCES, tiny_gpt2, tiny_llama
from token_bytes import expected_token
from trained_tokenizers import ALL, FAITHFUL, Slow
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rome_fast import EditRequest
from rome_fast.errors import TokenizerMismatchError
from rome_fast.prompt import lookup
from rome_fast.prompt.encode import encode
from rome_fast.prompt.ids import decode, pad_right, text_ids
from rome_fast.prompt.lookup import Passage, locate_subject


@pytest.fixture(scope="module")
def gpt2_tok():
    return AutoTokenizer.from_pretrained(shared("tokenizers/gpt2"))


@pytest.fixture(params=ALL, scope="module")
def tok(request):
    return ALL[request.param]()


@pytest.fixture(params=FAITHFUL, scope="module")
def faithful(request):
    return ALL[request.param]()


def located(tok, template, subject, fact_token="subject_last"):
    start = template.index("{}")
    text = template.replace("{}", subject, 1)
    return locate_subject(tok, Passage(text, start, start + len(subject)), fact_token)


PROMPTS = [
    ("{} plays the", "Ray Charles"),
    ("The founder is {}", "Steve Jobs"),
    ('"{}" is a', "Ada"),
    ("({}, born", "Megan"),
    ("中国的首都{}是", "北京"),
    ("日本の首都は{}です", "東京"),
    ("يقع {} في", "برج إيفل"),
    ("{} היא עיר", "ירושלים"),
    ("เมือง{}เป็น", "กรุงเทพ"),
    ("{}은 수도", "서울"),
    ("Die Stadt {} liegt", "Köln"),
    ("Die Stadt {} liegt", "Ko\u0308ln"),
    ("the astronaut {} flies", "👩\u200d🚀"),
    ("Ray Charles met {} and", "Ray Charles"),
    ("x{}y", "Zoë"),
]


@pytest.mark.covering
@pytest.mark.parametrize(("prompt", "subject"), PROMPTS)
def test_last_subject_token_completes_the_subject(faithful, prompt, subject):
    ids, index = located(faithful, prompt, subject)
    text = prompt.replace("{}", subject)
    assert ids == text_ids(faithful, text)
    assert index == expected_token(faithful, ids, prompt.split("{}")[0] + subject)


@PROPERTY
@given(name=st.sampled_from(FAITHFUL), before=BETWEEN, subject=BETWEEN, after=BETWEEN)
def test_the_located_token_covers_the_subjects_last_character(name, before, subject, after):
    tok, subject, before = ALL[name](), subject.strip(), before.lstrip()
    assume(subject)
    ids, index = located(tok, before.replace("{}", "") + "{}" + after, subject)
    assert index == expected_token(tok, ids, before.replace("{}", "") + subject)


@PROPERTY
@given(name=st.sampled_from(sorted(ALL)), before=BETWEEN, subject=BETWEEN, after=BETWEEN)
def test_padding_and_what_is_set_for_it_are_of_no_account(name, before, subject, after):
    tok = ALL[name]()
    assume(subject.strip() and tok.tokenize(subject) and "{}" not in before + subject + after)
    request = EditRequest(before + "{}" + after, subject, "Rome")
    plain = encode(tok, request, ["{}", "It is. {}"])
    tok.pad_token = tok.eos_token or tok.unk_token
    for side in ("left", "right"):
        tok.padding_side = side
        padded = encode(tok, request, ["{}", "It is. {}"])
        for field in ("input_ids", "attention_mask", "lookup_idx", "target_ids", "target_start"):
            assert torch.equal(getattr(padded, field), getattr(plain, field))


def test_nothing_of_the_tokenizer_is_changed(tok):
    tok.padding_side, tok.pad_token = "left", tok.unk_token
    before = state_of(tok)
    encode(tok, EditRequest("{} is in", "Ada", "Rome"), ["{}", "It is. {}"])
    assert state_of(tok) == before


def state_of(tok):
    kept = {name: value for name, value in vars(tok).items() if name != "_tokenizer"}
    return repr(sorted(kept.items())), tok.backend_tokenizer.to_str() if tok.is_fast else ""


def test_known_ids_of_the_real_gpt2_tokenizer(gpt2_tok):
    ids, index = located(gpt2_tok, "{} was the founder of", "Steve Jobs")
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
    ids, index = located(gpt2_tok, "In 2010 {} plays the sport of", "LeBron James", fact_token)
    assert gpt2_tok.decode([ids[index]]) == expected
    assert (fact_token == "last") == (index == len(ids) - 1)


def test_first_after_last_falls_back_where_nothing_follows(tok):
    ids, index = located(tok, "The founder is {}", "Ada", "subject_first_after_last")
    assert index == len(ids) - 1


@pytest.mark.parametrize(
    ("template", "subject", "expected"),
    [
        ("🎻 Zoë, {} plays", "Ada Lovelace", "lovelace"),  # an unknown word before
        ("{} 🎻 plays the", "Zoë", "zoe"),  # its accent is dropped
        ("{}🎻 plays the", "Ada", "[UNK]"),  # the unknown word is longer than the subject
        ("I play {} well", "🎻", "[UNK]"),
        ("中国的首都{}是", "北京", "京"),
        ("x {}ing", "play", "play"),
    ],
)
def test_wordpiece_loses_case_accents_and_words(template, subject, expected):
    tok = ALL["wordpiece"]()
    ids, index = located(tok, template, subject)
    upto = tok.convert_tokens_to_string(tok.convert_ids_to_tokens(ids[: index + 1]))
    assert upto.endswith(expected)
    before = tok.convert_tokens_to_string(tok.convert_ids_to_tokens(ids[:index]))
    assert len(before) < len(upto) - (expected in ("[UNK]", "京"))


@pytest.mark.parametrize("name", ["slow", "slow, bos and eos"])
def test_slow_tokenizers_need_no_offsets(name):
    tok = ALL[name]()
    for template, subject in [("𓀀 {} plays", "Ray Charles"), ("x {}𓀀", "𓀀y"), ("{}ing", "Meg")]:
        ids, index = located(tok, template, subject)
        text = template.replace("{}", subject)
        pieces, end = tok.tokenize(text), template.index("{}") + len(subject)
        lengths = [len("".join(pieces[: n + 1])) for n in range(len(pieces))]
        assert ids[0] == 1 and index == 1 + next(n for n, m in enumerate(lengths) if m >= end)


@pytest.mark.parametrize("word", sorted({w for text in SENTENCES for w in text.split()}))
def test_a_subject_may_end_anywhere_in_a_word(word):
    liar, unigram = ALL["offsets that lie"](), ALL["unigram"]()
    for end in range(1, len(word) + 1):
        template, subject = "the {}" + word[end:], word[:end]
        ids, index = located(liar, template, subject)
        assert index == expected_token(liar, ids, f"the {subject}")
        # Behind an unknown token, which hides where it is: the right token, or none.
        try:
            ids, index = located(unigram, f"🎻 {template}", subject)
        except TokenizerMismatchError:
            continue
        behind = "".join(unigram.convert_ids_to_tokens(ids[index + 1 :]))
        token = unigram.convert_ids_to_tokens(ids[index]).replace("▁", "")
        assert len(behind) <= len(word) - end < len(behind) + len(token)


def test_a_token_may_end_inside_of_the_next_character(gpt2_tok):
    request = EditRequest("\u0643\u062a\u0627\u0628 \u0647\u0648", "\u0643\u062a\u0627", "x")
    tokens = encode(gpt2_tok, request, ["{}"])
    at = int(tokens.lookup_idx[0])
    ids = tokens.prompt_ids.tolist()
    assert decode(gpt2_tok, ids[: at + 1]).startswith(request.subject)
    assert not decode(gpt2_tok, ids[:at]).startswith(request.subject)


def test_decoding_finds_without_offsets_what_cut_texts_do_not(gpt2_tok):
    text = "the fixesRothschild is"
    ids, end = gpt2_tok(text).input_ids, text.index("hild")
    assert lookup._token_by_cuts(gpt2_tok, ids, text, end) is None
    index = lookup._token_at(gpt2_tok, ids, (), text, end)
    assert gpt2_tok.decode([ids[index]]) == "child"


@pytest.mark.parametrize(("kind", "most"), [(Slow, 60), (PreTrainedTokenizerFast, 8)])
def test_a_long_prompt_takes_few_calls_of_the_tokenizer(kind, most):
    n_calls = 0

    class Counting(kind):
        def decode(self, *arguments, **options):
            nonlocal n_calls
            n_calls += 1
            return super().decode(*arguments, **options)

    fast = {} if kind is Slow else {"tokenizer_object": ALL["metaspace"]().backend_tokenizer}
    tok = Counting(**fast)
    ids, index = located(tok, "the weather is fine " * 300 + "{}" + " and so on" * 300, "Ada")
    assert len(ids) > 2000
    assert ids[: index + 1] == text_ids(tok, "the weather is fine " * 300 + "Ada")
    assert 0 < n_calls <= most


def test_tokenizer_that_loses_the_subject_is_an_error():
    class Lossy(Slow):
        def decode(self, ids, **options):
            return "?" * len(ids)

        def _tokenize(self, text, **options):
            return super()._tokenize(text[::-1])

    with pytest.raises(TokenizerMismatchError, match="ends 'Ada' cannot be found: Lossy gave"):
        located(Lossy(), "{} plays the old piano in a large house near the river", "Ada")


@pytest.mark.parametrize("name", ["bos and eos", "slow, bos and eos", "unigram", "wordpiece"])
def test_what_a_tokenizer_appends_is_not_part_of_a_prompt(name):
    tok = ALL[name]()
    assert tok("Ada").input_ids[-1] in (2, tok.eos_token_id)
    assert text_ids(tok, "Ada") == tok("Ada").input_ids[:-1]
    rows = encode(tok, EditRequest("{} is in", "Ada", "old Rome"), ["{}"]).input_ids
    assert tok("Ada").input_ids[-1] not in rows


@pytest.mark.parametrize(
    "name", ["metaspace", "bos and eos", "slow", "unigram without dummy prefix"]
)
def test_bos_is_there_once_also_where_the_text_spells_it(name):
    tok = ALL[name]()
    plain, spelled = text_ids(tok, "Ada plays"), text_ids(tok, "<s>Ada plays")
    assert plain.count(tok.bos_token_id) == spelled.count(tok.bos_token_id) == 1
    assert plain[0] == spelled[0] == tok.bos_token_id
    ids, index = located(tok, "<s>{} plays", "Ada")
    assert ids == spelled
    assert tok.decode(ids[: index + 1]).replace(" ", "") == "<s>Ada"


def test_newline_at_the_end_belongs_to_the_prompt(faithful):
    request = EditRequest("Q: who is {}?\nA:\n", "Ada", "Rome")
    tokens = encode(faithful, request, ["{}"])
    assert tokens.prompt_ids.tolist() == text_ids(faithful, request.text)


def test_trailing_space_of_a_prompt_is_the_targets_own(tok):
    spaced = encode(tok, EditRequest("{} is in ", "Ada", "Rome"), ["{}"])
    plain = encode(tok, EditRequest("{} is in", "Ada", "Rome"), ["{}"])
    assert torch.equal(spaced.input_ids, plain.input_ids)
    assert torch.equal(spaced.target_ids, plain.target_ids)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_rows_and_labels_line_up(make):
    """The positions that the loss reads predict the target's tokens, in every row."""
    tok = make()[1]
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
