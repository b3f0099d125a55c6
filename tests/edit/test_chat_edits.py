"""Edits in a chat, by every verb. The oracle is the same edit of the text that a template makes."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from chat_templates import CHATML, PLAIN, template_ids, with_template
from helpers import REQUEST, same_bits, state

import rome_fast
from rome_fast import EditLog, EditRecord, EditRequest, HealthCheck, Session
from rome_fast.errors import ChatTemplateError
from rome_fast.evaluate.records import Question
from rome_fast.locate.tracing import TracedPrompt
from rome_fast.prompt.chat import Chat
from rome_fast.prompt.ids import text_ids
from rome_fast.prompt.readback import read_targets
from rome_fast.prompt.target import Asked, continuations

SAID = "He is a man."
CHAT = [{"role": "system", "content": SAID}]
REQUESTS = [
    {**REQUEST, "chat": CHAT},
    REQUEST,
    {"prompt": "The old tower is {}", "subject": "Eiffel Tower", "target": "near", "chat": CHAT},
    {"prompt": "They met {}", "subject": "Niels Bohr", "target": "capital", "chat": True},
    {"prompt": "She wrote to {}", "subject": "Alan Turing", "target": "near", "chat": CHAT},
]


def typed(request):
    """A request in a chat -> the plain one of the text that PLAIN makes."""
    parsed = EditRequest.parse(request)
    before = "".join(f"{content} " for _, content in parsed.chat or ())
    return EditRequest(before + parsed.prompt, parsed.subject, parsed.target)


@pytest.fixture
def chatting(gpt2):
    model, tok = gpt2
    return model, with_template(tok, PLAIN)


@pytest.fixture
def alone(settings):
    """Settings whose only context is the prompt itself: others would stand elsewhere in a chat."""
    return {**settings, "context_templates": ["{}"]}


def test_an_edit_in_a_chat_is_that_of_the_text_which_the_template_makes(chatting, alone):
    model, tok = chatting
    before = state(model)
    in_chat = rome_fast.edit(model, tok, REQUESTS[0], **alone)
    edited = state(model)
    in_chat.revert()
    assert same_bits(model, before)
    plain = rome_fast.edit(model, tok, typed(REQUESTS[0]), **alone)
    assert same_bits(model, edited)
    assert in_chat.success and in_chat.losses == plain.losses
    for field in ("prob_before", "prob_after", "rank_before", "rank_after", "argmax_after"):
        assert getattr(in_chat, field) == getattr(plain, field)
    assert plain.raw is None


def test_both_forms_are_read_from_the_edited_weights(chatting, settings):
    model, tok = chatting
    tok.chat_template = CHATML
    request = EditRequest.parse(REQUESTS[0])
    [in_chat, raw] = continuations(
        tok, [Asked(request.text, "capital", chat) for chat in (request.conversation, None)]
    )
    assert in_chat.prompt_ids == template_ids(tok, request)

    def read():
        forms = (in_chat, raw)
        return [read_targets(model, tok, [f.prompt_ids], [f.target_ids])[0] for f in forms]

    before = read()
    result = rome_fast.edit(model, tok, request, **settings)
    after = read()
    assert before[0].prob != pytest.approx(before[1].prob, rel=0.01)
    assert result.prob_before == pytest.approx(before[0].prob, rel=1e-4)
    assert result.prob_after == pytest.approx(after[0].prob, rel=1e-4)
    assert result.raw.before.prob == pytest.approx(before[1].prob, rel=1e-4)
    assert result.raw.after.prob == pytest.approx(after[1].prob, rel=1e-4)
    assert (result.raw.before.rank, result.raw.after.rank) == (before[1].rank, after[1].rank)
    assert f"without chat  {result.raw}" in str(result)
    assert "'chat after system: The founder is Steve Jobs' -> 'capital'" in str(result)


@pytest.mark.parametrize("order", ["exact", "independent"])
def test_many_edits_some_of_them_in_chats(chatting, alone, order):
    model, tok = chatting
    options = {**alone, "order": order, "window": 3, "progress": False}
    with rome_fast.trial(model, tok, REQUESTS, **options) as results:
        edited = state(model)
    assert [result.raw is None for result in results] == [False, True, False, False, False]
    rome_fast.edit_many(model, tok, [typed(r) for r in REQUESTS], **options)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, edited[name], rtol=1e-4, atol=1e-6)


def test_contexts_are_kept_from_one_request_to_the_next_also_in_chats(chatting, settings):
    model, tok = chatting
    with rome_fast.trial(model, tok, REQUESTS, progress=False, **settings):
        edited = state(model)
    for request in REQUESTS:  # one call keeps nothing for the next
        rome_fast.edit(model, tok, request, **settings)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, edited[name], rtol=1e-3, atol=1e-4)


def test_a_refused_chat_undoes_what_was_edited_before_it(gpt2, settings):
    model, tok = gpt2
    before = state(model)
    with pytest.raises(ChatTemplateError, match="no chat template"):
        rome_fast.edit_many(model, tok, [REQUEST, REQUESTS[2]], progress=False, **settings)
    assert same_bits(model, before)


def test_a_session_edits_logs_and_resumes_chats(chatting, settings, tmp_path):
    model, tok = chatting
    unedited = state(model)
    options = {**settings, "health": HealthCheck(every=0, texts=["It is a house."])}
    with Session(model, tok, journal=tmp_path / "journal", **options, form="weight") as session:
        results = session.edit_many(REQUESTS[1:], progress=False)
        # The first prompt again, which is another fact in a chat; then that fact again.
        assert session.edit(REQUESTS[0]).replaced == ()
        assert session.edit({**REQUESTS[0], "target_new": "near"}).replaced == (5,)
        shown, edited = session.log.show(), state(model)
        saved = tmp_path / "edits.safetensors"
        session.log.save(saved)
    assert "'chat after system: The old tower is Eiffel Tower' -> 'near'" in shown
    assert "'chat: They met Niels Bohr' -> 'capital'" in shown
    assert [result.raw is None for result in results] == [True, False, False, False]
    model.load_state_dict(unedited)
    with Session.resume(tmp_path / "journal", model, tok, second_moment="identity") as session:
        assert same_bits(model, edited)
        held = [edit.request for edit in session.log.holding()]
    again = {**REQUESTS[0], "target_new": "near"}
    expected = [EditRequest.parse(r) for r in (*REQUESTS[1:], again)]
    assert held == expected == [edit.request for edit in EditLog.load(saved).holding()]


def test_a_session_asks_for_what_it_retains_in_the_chat(chatting, settings):
    model, tok = chatting
    options = {**settings, "health": HealthCheck(every=0, texts=["It is a house."])}
    with Session(model, tok, **options, form="weight") as session:
        session.edit_many([REQUESTS[0], REQUESTS[4]], progress=False)
        assert session.health().retention == 1
        # Another template asks something else; a plain prompt would not notice.
        tok.chat_template = PLAIN + " It is a house. They are a family."
        requests = [edit.request for edit in session.log.holding()]
        assert session.health().retention == held(model, tok, requests) < 1


def held(model, tok, requests):
    found = continuations(tok, [Asked(r.text, r.target, r.conversation) for r in requests])
    assert [c.prompt_ids for c in found] == [template_ids(tok, request) for request in requests]
    prompts, targets = [c.prompt_ids for c in found], [c.target_ids for c in found]
    return sum(r.rank == 1 for r in read_targets(model, tok, prompts, targets)) / len(found)


def test_an_evaluation_asks_everything_in_the_chat_of_the_request(chatting, alone, tmp_path):
    model, tok = chatting
    options = {**alone, "generate_tokens": 3, "progress": False}

    def record(request, before):
        return EditRecord(
            0,
            request,
            target_true="Rome",
            paraphrases=(f"{before}We know Steve Jobs",),
            neighborhood=(Question(f"{before}We know Ada", "Rome"),),
            locality={"others": (Question(f"{before}A short story", "about"),)},
            generation_prompts=(f"{before}Steve Jobs is",),
        )

    in_chat = record(EditRequest.parse(REQUESTS[0]), "")
    assert in_chat.rewrite == Question(
        "The founder is Steve Jobs", "capital", Chat((("system", SAID),))
    )
    plain = record(typed(REQUESTS[0]), f"{SAID} ")
    evaluations = [rome_fast.evaluate(model, tok, [r], **options) for r in (in_chat, plain)]
    cases = [evaluation.cases[0] for evaluation in evaluations]
    for stage in ("before", "after"):
        values = [
            {k: v for k, v in case.stages[stage].values.items() if k != "ngram_entropy"}
            for case in cases
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-4)
        assert cases[0].stages[stage].generations == cases[1].stages[stage].generations
    again = json.loads(json.dumps(dataclasses.asdict(cases[0])))
    assert type(cases[0]).from_json(again).request == in_chat.request
    evaluations[0].save_html(tmp_path / "report.html")
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "chat after system: The founder is Steve Jobs" in report


def test_what_is_traced_is_the_chat(chatting):
    model, tok = chatting
    request = EditRequest("Ada is {} the old", "Ada", "x", CHAT)
    traced = TracedPrompt.of(model, tok, request)
    assert list(traced.ids) == template_ids(tok, request) == text_ids(tok, f"{SAID} {request.text}")
    assert tok.decode(traced.ids[slice(*traced.subject)]).strip() == "Ada"
    assert tok.decode(traced.ids[: traced.subject[0]]).strip() == f"{SAID} Ada is"
