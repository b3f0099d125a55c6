"""Whose rules a number follows: what each protocol asks, and its own verdicts."""

import json
from dataclasses import replace

import pytest
from helpers import CONTEXTS, REQUEST

from rome_fast import EditRequest, evaluate
from rome_fast.errors import ChatTemplateError, InvalidArgumentError, JudgeError
from rome_fast.evaluate.generation import natural_answers
from rome_fast.evaluate.protocols import ANSWER_TOKENS, PROTOCOLS, chosen
from rome_fast.evaluate.protocols import CONTEXTS as CONTEXTS_OF_WILD
from rome_fast.evaluate.records import EditRecord, Question
from rome_fast.prompt.chat import Chat

RECORD = EditRecord(
    case_id=7,
    request=EditRequest.parse(REQUEST),
    target_true="Apple",
    paraphrases=("He founded", "The founder of it is"),
    neighborhood=(Question("The founder is Bill Gates", "Microsoft"),),
)
QA = "Please answer the question:\n\nQ: {}\nA:"


@pytest.fixture
def judged(gpt2, hparams):
    model, tok = gpt2

    def run(**options):
        given = {"second_moment": "identity", "context_templates": CONTEXTS, "progress": False}
        return evaluate(model, tok, [RECORD], "single", hparams, **given, **options)

    return run


def test_names():
    assert chosen("wild, rome,wild") == ("wild", "rome")
    assert chosen(["strict"]) == ("strict",)
    for bad in ("", "wildest", [], [5], "rome,"):
        with pytest.raises(InvalidArgumentError, match="protocol must be one or more of rome, "):
            chosen(bad)


def test_wild_asks_questions_and_lets_the_model_answer(judged, gpt2):
    model, tok = gpt2
    evaluation = judged(protocol="wild")
    [case] = evaluation.cases
    before = case.stages["before"].readings
    asked = ["The founder is Steve Jobs", *RECORD.paraphrases, "The founder is Bill Gates"]
    assert [reading.prompt for reading in before] == [QA.format(text) for text in asked]
    groups = ["rewrite", "rephrase", "rephrase", "neighborhood"]
    assert [reading.group for reading in before] == groups
    assert before[-1].target == "Microsoft" and before[0].target == REQUEST["target_new"]
    answers = natural_answers(model, tok, [reading.prompt for reading in before], ANSWER_TOKENS)
    assert [reading.answer for reading in before] == [answer.text for answer in answers]
    kinds = [a.is_to(r.target) for a, r in zip(answers, before, strict=True)]
    assert [reading.kind for reading in before] == kinds
    values = case.stages["after"].values
    assert {"wild_rewrite", "wild_rephrase", "wild_neighborhood"} <= set(values)
    assert evaluation.setting["context"] == "qa"


def test_rome_alone_asks_for_no_answers(judged):
    evaluation = judged()
    assert not evaluation.cases[0].stages["after"].readings
    assert [p["name"] for p in evaluation.setting["protocols"]] == ["rome"]
    assert "context" not in evaluation.setting


def test_a_question_alone_is_put_as_it_is(judged):
    [case] = judged(protocol="rome,wild", context="question").cases
    assert case.stages["after"].readings[0].prompt == "The founder is Steve Jobs"
    for bad in ("essay", "{} and {}", 5):
        with pytest.raises(InvalidArgumentError, match="context must be one of question, qa, "):
            judged(protocol="wild", context=bad)


@pytest.mark.parametrize("context", ["one_shot", "Ask: {}\nSay:"])
def test_a_question_stands_in_its_context_and_in_its_own_words(judged, monkeypatch, context):
    record = replace(RECORD, question="Who is the founder, Steve Jobs or not?")
    monkeypatch.setattr(f"{__name__}.RECORD", record)
    [case] = judged(protocol="wild", context=context).cases
    put = CONTEXTS_OF_WILD.get(context, context)
    asked = [reading.prompt for reading in case.stages["after"].readings]
    assert asked[:2] == [put.replace("{}", q) for q in (record.question, "He founded")]
    # The edited prompt itself is what the other protocols ask.
    assert case.stages["after"].answers["rewrite_new"][0].prompt == "The founder is Steve Jobs"


def test_a_question_in_a_chat(judged, gpt2):
    model, tok = gpt2
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        judged(protocol="wild", context="chat")
    tok.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}A:"
    [case] = judged(protocol="wild", context="chat").cases
    readings = case.stages["before"].readings
    prompts, chats = [reading.prompt for reading in readings], [Chat()] * len(readings)
    answers = natural_answers(model, tok, prompts, ANSWER_TOKENS, chats=chats)
    assert [reading.answer for reading in readings] == [answer.text for answer in answers]
    assert readings[0].prompt == "The founder is Steve Jobs"


def test_a_judge_of_ones_own(judged):
    asked = []

    def judge(question, answer, target):
        asked.append((question, target))
        return question == "He founded"

    evaluation = judged(protocol="wild", judge=judge)
    values = evaluation.cases[0].stages["after"].values
    assert values["wild_rephrase"] == 0.5 and values["wild_rewrite"] == 0.0
    assert ("The founder is Bill Gates", "Microsoft") in asked
    assert evaluation.setting["judge"] == "own"


def test_a_judge_by_name_counts_what_holds_the_target(judged, monkeypatch, tmp_path):
    exact = judged(protocol="wild")
    target = exact.cases[0].stages["after"].readings[0].answer.split()[-1].strip(".,")
    record = replace(RECORD, request=replace(RECORD.request, target=target))
    monkeypatch.setattr(f"{__name__}.RECORD", record)
    contained = judged(protocol="wild", judge="contained")
    readings = [r for s in contained.cases[0].stages.values() for r in s.readings]
    assert [r.right for r in readings] == [r.kind in ("exact", "contained") for r in readings]
    assert contained.setting["judge"] == "contained"
    contained.save_readings(tmp_path / "readings.jsonl")
    again = type(contained).from_readings(tmp_path / "readings.jsonl", judge="exact")
    judged_again = [r for s in again.cases[0].stages.values() for r in s.readings]
    assert [r.right for r in judged_again] == [r.kind == "exact" for r in readings]
    for bad in ("nearly", 5, None):
        with pytest.raises(InvalidArgumentError, match="judge must be one of exact, contained"):
            judged(protocol="wild", judge=bad)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda *_: 1 / 0, r"judge= has raised ZeroDivisionError: .* for question 'The founder"),
        (lambda *_: "yes", r"judge= must return true or false, got 'yes'"),
    ],
)
def test_a_bad_judge_is_named(judged, gpt2, judge, message):
    before = gpt2[0].transformer.h[1].mlp.c_proj.weight.detach().clone()
    with pytest.raises(JudgeError, match=message):
        judged(protocol="wild", judge=judge)
    assert (gpt2[0].transformer.h[1].mlp.c_proj.weight == before).all()


def test_the_rules_stand_at_the_head_of_every_report(judged, tmp_path):
    evaluation = judged(protocol="rome,wild")
    said = " ".join(str(evaluation).split())
    for name in ("rome", "wild"):
        assert f"{name} ({PROTOCOLS[name].source})" in said
    assert "the edited prompt: right" not in said and "wild_rewrite_endless" in said
    evaluation.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "2502.11177" in page and "4 free answers" in page
    last = evaluation.cases[0].stages["after"].readings[-1]
    assert f"({last.kind})</td>" in page and "wild_neighborhood" in page
    again = type(evaluation).from_json(json.loads(json.dumps(evaluation.to_json())))
    assert again.cases[0].stages["after"].readings == evaluation.cases[0].stages["after"].readings


def test_what_is_too_long_to_be_answered_is_one_cases_failure(gpt2, hparams):
    """128 positions hold the prompt, not the question around it, nor what it asks to go on with."""
    model, tok = gpt2
    room = replace(RECORD, case_id="question", question="Who? " * 60)
    text = replace(RECORD, case_id="text", generation_prompts=("He is " * 80,))
    options = {"second_moment": "identity", "context_templates": CONTEXTS, "progress": False}
    found = evaluate(
        model, tok, [RECORD, room, text], "single", hparams, protocol="wild", **options
    )
    assert [case.case_id for case in found.failed] == ["question", "text"]
    assert all("tokens, but the model continues 1 to 128" in case.error for case in found.failed)
    assert found.metrics["after"]["wild_rewrite"].n == 3
    assert found.cases[0].error is None
