"""Requests in a chat: the template's own ids, the subject in the user's text, clear refusals."""

from __future__ import annotations

import json

import pytest
from chat_templates import (
    ALTERNATING,
    CHATML,
    GEMMA,
    LLAMA2,
    LLAMA3,
    LOWER,
    MAY_THINK,
    SYSTEM,
    TAKES_SYSTEM,
    THINKING,
    TWICE,
    template_ids,
    with_template,
)
from token_bytes import expected_token
from trained_tokenizers import ALL, FAITHFUL

from rome_fast import EditRequest, load_records
from rome_fast.errors import ChatTemplateError, InvalidRequestError
from rome_fast.prompt.chat import Chat, Frame
from rome_fast.prompt.encode import encode
from rome_fast.prompt.ids import decode, text_ids
from rome_fast.prompt.target import prompt_ids

PROMPT = "Ada met Ada Lovelace in Köln, 北京. Where was Ada born?"
HISTORY = (*SYSTEM, {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"})


@pytest.fixture(params=FAITHFUL)
def tok(request):
    return ALL[request.param]()


@pytest.mark.covering("tok", "name,chat")
@pytest.mark.parametrize("name", TAKES_SYSTEM)
@pytest.mark.parametrize("chat", [True, SYSTEM, HISTORY])
def test_the_ids_are_those_of_the_template_and_hold_one_bos(tok, name, chat):
    with_template(tok, TAKES_SYSTEM[name])
    request = EditRequest(PROMPT, "Ada", "London", chat)
    tokens = encode(tok, request, ["{}"])
    ids = tokens.prompt_ids.tolist()
    assert ids == template_ids(tok, request) == prompt_ids(tok, [PROMPT], [request.conversation])[0]
    spells_bos = name.startswith("llama") and tok.bos_token == "<s>"
    n_turns = 2 if name == "llama 2" and chat is HISTORY else 1  # it spells one a turn
    assert ids.count(tok.bos_token_id) == (n_turns if spells_bos else 0)


@pytest.mark.covering("tok", "name,chat")
@pytest.mark.parametrize("name", TAKES_SYSTEM)
@pytest.mark.parametrize("chat", [True, SYSTEM, HISTORY])
def test_the_subject_is_found_in_the_users_text(tok, name, chat):
    with_template(tok, TAKES_SYSTEM[name])
    request = EditRequest(PROMPT, "Ada", "London", chat)
    tokens = encode(tok, request, ["It was fine. {}", "{}"])
    frame = Frame.of(tok, request.conversation)
    upto = PROMPT[: PROMPT.rindex("Ada") + 3]
    for row, context in enumerate(["It was fine. ", ""]):
        ids = tokens.input_ids[row].tolist()
        text = f"{frame.before}{context}{upto}"
        spelled = text.replace("<s>", "") if tok.bos_token == "<s>" else text
        assert tokens.lookup_idx[row] == expected_token(tok, ids, spelled)
        length = int(tokens.attention_mask[row].sum()) - len(tokens.target_ids) + 1
        whole = EditRequest(context + PROMPT, "Ada", "London", chat)
        assert ids[:length] == template_ids(tok, whole)


def test_the_prompt_of_the_essence_stays_a_plain_text(tok):
    with_template(tok, LLAMA3)
    tokens = encode(tok, EditRequest(PROMPT, "Ada", "London", SYSTEM), ["{}"])
    length = int(tokens.attention_mask[1].sum())
    assert tokens.input_ids[1, :length].tolist() == text_ids(tok, "Ada is a")


@pytest.mark.covering
@pytest.mark.parametrize(
    ("template", "gap"), [(CHATML, ""), (LLAMA2, " "), (LLAMA3, ""), (GEMMA, ""), (THINKING, "")]
)
@pytest.mark.parametrize("target", ["London", " London"])
def test_the_template_puts_the_space_before_the_target(tok, template, gap, target):
    with_template(tok, template)
    tokens = encode(tok, EditRequest(PROMPT, "Ada", target, True), ["{}"])
    assert "".join(tokens.target_tokens) == f"{gap}London"
    ids = tokens.prompt_ids.tolist()
    joint = Frame.of(tok, Chat()).wrap(PROMPT) + f"{gap}London"
    assert decode(tok, ids + tokens.target_ids.tolist()) == decode(
        tok, tok(joint, add_special_tokens=False).input_ids
    )
    assert tokens.findings == ()


def test_a_chat_request_carries_its_plain_form(tok):
    with_template(tok, CHATML)
    tokens = encode(tok, EditRequest(PROMPT, "Ada", "London", SYSTEM), ["{}"])
    plain = encode(tok, EditRequest(PROMPT, "Ada", "London"), ["{}"])
    assert plain.raw is None and tokens.raw is not None
    assert tokens.raw.prompt_ids == plain.prompt_ids.tolist()
    assert tokens.raw.target_ids == plain.target_ids.tolist()


USER = ("user", "Hi.")
REFUSALS = {
    "no template": (None, True, PROMPT, "PreTrainedTokenizerFast|TokenizersBackend"),
    "no template, remedy": (None, True, PROMPT, "set tok.chat_template, or edit the plain prompt"),
    "no system": (GEMMA, SYSTEM, PROMPT, "roles system, user: System role not supported"),
    "alternating": (ALTERNATING, [USER], PROMPT, "roles user, user: roles must alternate"),
    "lower case": (LOWER, True, PROMPT, "alters the user's text 'Ada met .*as the template leaves"),
    "stripped": (LLAMA2, True, f"{PROMPT}\n", r"alters the user's text 'Ada met .*born\?\\n'"),
    "twice": (TWICE, True, PROMPT, "shows the user's text 2 times"),
    "never": ("{{ 'Hello' }}", True, PROMPT, "shows the user's text 0 times"),
    "no jinja": ("{% for %}", True, PROMPT, "rejects messages with the roles user: "),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_template_that_does_not_fit_is_refused(case):
    template, chat, prompt, message = REFUSALS[case]
    tok = with_template(ALL["metaspace"](), template)
    with pytest.raises(ChatTemplateError, match=f"(?s){message}"):
        encode(tok, EditRequest(prompt, "Ada", "London", chat), ["{}"])


def test_a_lower_case_prompt_passes_a_lower_casing_template():
    tok = with_template(ALL["metaspace"](), LOWER)
    request = EditRequest("where was ada born?", "ada", "London", True)
    assert encode(tok, request, ["{}"]).prompt_ids.tolist() == template_ids(tok, request)


def test_the_refusal_names_where_the_tokenizer_came_from(tmp_path):
    from transformers import AutoTokenizer

    ALL["metaspace"]().save_pretrained(tmp_path)
    tok = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ChatTemplateError, match=f"the tokenizer '{tmp_path}' .* has no chat templ"):
        encode(tok, EditRequest(PROMPT, "Ada", "London", True), ["{}"])


PAIRS = (("system", "Be brief."), ("user", "Hi."), ("assistant", "Yes?"))
DICTS = [{"role": role, "content": content} for role, content in PAIRS]


def test_messages_in_every_form_are_the_same_request():
    plain = EditRequest("{} plays the", "Ada", "violin", PAIRS)
    user = {"role": "user", "content": "Ada plays the"}
    for request in (
        EditRequest("Ada plays the", "Ada", "violin", chat=DICTS),
        EditRequest([*DICTS, user], "Ada", "violin"),
        EditRequest.parse({"prompt": [*DICTS, user], "subject": "Ada", "target_new": "violin"}),
        EditRequest.parse(
            {"prompt": "{} plays the", "subject": "Ada", "target": "violin", "chat": DICTS}
        ),
        EditRequest([user], "Ada", "violin", chat=True),
    ):
        expected = plain if request.chat else EditRequest("{} plays the", "Ada", "violin", True)
        assert request == expected
    assert plain.chat == PAIRS
    assert EditRequest("{} plays", "Ada", "violin", True).chat == ()
    assert EditRequest("{} plays", "Ada", "violin", False).chat is None


def test_content_may_be_parts_of_text():
    parts = [{"type": "text", "text": "Ada plays "}, {"type": "text", "text": "the"}]
    request = EditRequest([{"role": "user", "content": parts}], "Ada", "violin")
    assert request == EditRequest("Ada plays the", "Ada", "violin", True)
    image = [{"type": "image", "url": "x"}, {"type": "text", "text": "Ada plays the"}]
    with pytest.raises(InvalidRequestError, match="a role and a content, both texts"):
        EditRequest([{"role": "user", "content": image}], "Ada", "violin")


def test_the_template_gets_its_arguments(tok):
    with_template(tok, MAY_THINK)
    asked = ("Where was Ada born?", "Ada", "London", True)
    quiet = EditRequest(*asked, chat_template_kwargs={"enable_thinking": False})
    tokens = {r: encode(tok, r, ["{}"]) for r in (quiet, EditRequest(*asked))}
    for request, found in tokens.items():
        assert found.prompt_ids.tolist() == template_ids(tok, request)
        assert found.findings == ()
    said = [decode(tok, found.prompt_ids.tolist()) for found in tokens.values()]
    assert ["<think>" in text for text in said] == [True, False]
    assert not quiet.same_fact(EditRequest(*asked))


def test_arguments_of_the_template_are_part_of_a_request():
    fields = {"prompt": "{} plays the", "subject": "Ada", "target_new": "violin", "chat": True}
    given = {"enable_thinking": False, "budget": 3}
    request = EditRequest.parse({**fields, "chat_template_kwargs": given})
    assert request.chat_template_kwargs == (("budget", 3), ("enable_thinking", False))
    again = EditRequest(**json.loads(json.dumps(request.to_json())))
    assert again == request and hash(again) == hash(request)
    [record] = load_records([{**fields, "chat_template_kwargs": given}])
    assert record.request == request and record.rewrite.chat == request.conversation
    assert "chat_template_kwargs" not in EditRequest.parse(fields).to_json()


def test_arguments_that_change_nothing_are_remarked(tok):
    with_template(tok, CHATML)
    asked = ("Where was Ada born?", "Ada", "London")
    idle = EditRequest(*asked, True, chat_template_kwargs={"thinking": False})
    assert encode(tok, idle, ["{}"]).findings == (
        "chat_template_kwargs {'thinking': False} change nothing in the chat template",
    )
    plain = EditRequest(*asked, chat_template_kwargs={"thinking": False})
    assert plain.findings() == ["chat_template_kwargs have no effect without chat"]


@pytest.mark.parametrize("given", ["thinking", 3, {"tools": []}, {3: True}, [("a",)]])
def test_arguments_that_are_none_are_refused(given):
    with pytest.raises(InvalidRequestError, match="request chat_template_kwargs must"):
        EditRequest("{} plays", "Ada", "violin", True, chat_template_kwargs=given)


BAD_MESSAGES = {
    "a text": ({"chat": "Be brief."}, "chat must be True or a list of messages, got str: 'Be b"),
    "one dict": ({"chat": DICTS[0]}, "True or a list of messages, got dict"),
    "a number": ({"chat": 1}, "True or a list of messages, got int: 1"),
    "no content": (
        {"chat": [{"role": "system"}]},
        "role and a content, .*got {'role': 'system'}",
    ),
    "parts": ({"chat": [{"role": "user", "content": [{}]}]}, "a role and a content, both texts"),
    "a triple": ({"chat": [("a", "b", "c")]}, "a role and a content"),
    "ends otherwise": ({"prompt": DICTS}, "ends with a message of role 'assistant'"),
    "twice": ({"prompt": DICTS[:2], "chat": DICTS}, "list of messages, and chat=.* says otherwise"),
    "not in a chat": ({"prompt": DICTS[:2], "chat": False}, "and chat=False says otherwise"),
    "no messages": ({"prompt": []}, r"prompt must be a string, got list: \[\]"),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_what_are_no_messages_is_refused(case):
    fields, message = BAD_MESSAGES[case]
    with pytest.raises(InvalidRequestError, match=message):
        EditRequest(**{"prompt": "{} plays", "subject": "Ada", "target": "violin", **fields})


def test_a_chat_is_told_to_the_reader():
    assert str(EditRequest("{} plays", "Ada", " the violin")) == "'Ada plays' -> 'the violin'"
    assert str(EditRequest("{} plays", "Ada", "x", True)) == "'chat: Ada plays' -> 'x'"
    assert EditRequest("{} plays", "Ada", "x", PAIRS).asked == (
        "chat after system, user, assistant: Ada plays"
    )
