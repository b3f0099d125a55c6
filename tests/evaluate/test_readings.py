"""Answers as a file: the figures follow from it without a model, whoever judges."""

from __future__ import annotations

import json

import pytest
from helpers import CONTEXTS, REQUEST

import rome_fast
from rome_fast import EditRequest, Evaluation
from rome_fast.errors import InvalidArgumentError, JudgeError
from rome_fast.evaluate import asking as asker
from rome_fast.evaluate.records import EditRecord, Question, Records
from rome_fast.prompt.answers import Answer

RECORDS = Records(
    [
        EditRecord(
            7,
            EditRequest.parse(REQUEST),
            paraphrases=("He founded", "The founder of it is"),
            neighborhood=(Question("The founder is Bill Gates", "Microsoft"),),
        ),
        EditRecord("long", EditRequest.parse(REQUEST), paraphrases=("He is " * 200,)),
        EditRecord(9, EditRequest("We drink tea with {}", "Ada Lovelace", "near")),
    ],
    n_skipped=1,
)


@pytest.fixture
def run(gpt2, hparams):
    """evaluate() by "wild", one record that cannot be asked and one that could not be read."""
    model, tok = gpt2
    options = {"second_moment": "identity", "context_templates": CONTEXTS, "generate_tokens": 0}

    def evaluate(mode="single", **more):
        return rome_fast.evaluate(
            *(model, tok, RECORDS, mode, hparams), **options, progress=False, **more
        )

    return evaluate


@pytest.fixture
def saved(run, tmp_path):
    """(the evaluation, its readings)"""
    evaluation = run(protocol="rome,wild")
    evaluation.save_readings(tmp_path / "readings.jsonl")
    return evaluation, tmp_path / "readings.jsonl"


def changed(path, change):
    """The file, with the answers' lines changed."""
    head, *lines = path.read_text("utf-8").splitlines()
    lines = [json.dumps(change(json.loads(line))) for line in lines]
    path.write_text("\n".join([head, *lines, ""]), "utf-8")
    return path


def wild(evaluation):
    return {
        stage: {name: metric for name, metric in metrics.items() if name.startswith("wild_")}
        for stage, metrics in evaluation.metrics.items()
    }


def has_word(question, answer, target):
    return "the" in answer.lower()


@pytest.mark.parametrize("mode", ["single", "sequential"])
def test_the_figures_are_those_of_the_evaluation(run, tmp_path, mode):
    evaluation = run(mode, protocol="wild")
    evaluation.save_readings(tmp_path / "readings.jsonl")
    again = Evaluation.from_readings(tmp_path / "readings.jsonl")
    assert again.metrics == wild(evaluation) and again.metrics["after"]["wild_rewrite"].n == 4
    assert set(again.metrics) == set(evaluation.metrics)
    for a, b in zip(again.cases, evaluation.cases, strict=True):
        assert (a.case_id, a.request, a.error) == (b.case_id, b.request, b.error)
        for name, stage in b.stages.items():
            assert a.stages[name].readings == stage.readings
    head = str(again).splitlines()[0]
    assert head.startswith("4 records: 2 edited, 1 not asked, 1 skipped, counted as failures")


def test_each_line_is_an_answer_with_its_verdict(saved):
    _, path = saved
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()[1:]]
    assert {line["case_id"] for line in lines} == {7, 9}
    asked = [line["question"] for line in lines if line["case_id"] == 7][:4]
    assert asked == [
        "The founder is Steve Jobs", "He founded", "The founder of it is",
        "The founder is Bill Gates",
    ]  # fmt: skip
    for line in lines:
        kind = Answer(line["answer"], line["kind"] != "endless").is_to(line["target"])
        assert (line["kind"], line["right"]) == (kind, kind == "exact")


def test_another_judge_finds_what_it_would_have_found(run, saved):
    _, path = saved
    again = Evaluation.from_readings(path, judge=has_word)
    assert again.metrics == wild(run(protocol="wild", judge=has_word))
    assert again.setting["judge"] == "own"


def test_verdicts_changed_by_hand_are_taken_and_told(saved, tmp_path):
    evaluation, path = saved
    changed(path, lambda line: {**line, "right": line["group"] == "rephrase"})
    again = Evaluation.from_readings(path)
    for stage in ("before", "after"):
        figures = again.metrics[stage]
        # Of three: one could not be asked, one could not be read.
        assert figures["wild_rephrase"].mean == pytest.approx(1 / 3)
        assert figures["wild_neighborhood"].mean == 0
    assert again.metrics["after"] != wild(evaluation)["after"]
    n = sum(
        reading.right != (reading.group == "rephrase")
        for case in evaluation.cases
        for stage in case.stages.values()
        for reading in stage.readings
    )
    assert n and f"judged by whether they are the target, {n} verdicts changed by hand" in " ".join(
        str(again).split()
    )
    again.save(tmp_path / "again.json")
    assert Evaluation.load(tmp_path / "again.json") == again
    again.save_html(tmp_path / "again.html")
    assert "wild_rephrase" in (tmp_path / "again.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"right": "yes"}, "line 2 right must be true or false, got 'yes'"),
        ({"right": 1}, "line 2 right must be true or false, got 1"),
        ({"kind": "nearly"}, "line 2 kind must be one of exact, contained, other, endless"),
        ({"group": "portability"}, "line 2 group must be one of rewrite, rephrase, neighborhood"),
        ({"answer": 5}, "line 2 answer must be text, got 5"),
        ({"stage": "later"}, "line 2 case 0, stage 'later' is none of the first line's"),
        ({"case": 99}, "line 2 case 99, stage 'before' is none of the first line's"),
        ({"case": [0]}, r"line 2 case \[0\]"),
    ],
)
def test_a_bad_answer_is_named_by_its_line(saved, change, told):
    _, path = saved
    changed(path, lambda line: {**line, **change})
    with pytest.raises(InvalidArgumentError, match=rf"readings\.jsonl: {told}"):
        Evaluation.from_readings(path)


def test_a_bad_file_is_named(saved, tmp_path):
    _, path = saved
    text = path.read_text("utf-8")
    head, first, *others = text.splitlines(keepends=True)
    for content, told in (
        ("", "line 1 must say format"),
        (text[text.index("\n") + 1 :], "line 1 must say format"),
        (head.replace('"n_readings"', '"n"') + first, "line 1 is damaged: KeyError"),
        (head + first[:30] + "\n", "line 2 is not JSON"),
        (head + "[1]\n", r"line 2 must be an object, got \[1\]"),
        (head + '{"case": 0}\n', "line 2 lacks stage, question"),
        (head + first + "".join(others[:-1]), "after 9 answers of 10: verdicts may be changed"),
        (text + first, "after 11 answers of 10"),
    ):
        path.write_text(content, "utf-8")
        with pytest.raises(InvalidArgumentError, match=told):
            Evaluation.from_readings(path)
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(InvalidArgumentError, match="is UTF-16: save it as UTF-8"):
        Evaluation.from_readings(path)
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        Evaluation.from_readings(tmp_path / "absent.jsonl")


def failing_at(count):
    """A judge that fails at its ``count``-th answer."""
    asked = []

    def judge(question, answer, target):
        asked.append(question)
        if len(asked) == count:
            raise ConnectionError("no answer")
        return True

    return judge


@pytest.mark.parametrize("mode", ["single", "sequential"])
def test_a_judge_that_fails_half_way_loses_no_answer(run, tmp_path, mode):
    with pytest.raises(JudgeError, match="save_readings of this error's evaluation") as found:
        run(mode, protocol="wild", judge=failing_at(6))
    expected = run(mode, protocol="wild")
    kept = found.value.evaluation
    assert kept.metrics.keys() == expected.metrics.keys() and kept.setting["judge"] == "exact"
    kept.save_readings(tmp_path / "kept.jsonl")
    again = Evaluation.from_readings(tmp_path / "kept.jsonl", judge=has_word)
    assert again.metrics == wild(run(mode, protocol="wild", judge=has_word))


def test_with_a_journal_the_answers_are_on_the_disk(run, tmp_path, monkeypatch):
    path = tmp_path / "cases.jsonl"
    with pytest.raises(JudgeError, match=r"they are in .*readings of cases\.jsonl"):
        run(protocol="wild", judge=failing_at(6), resume=path)
    again = Evaluation.from_readings(tmp_path / "readings of cases.jsonl", judge=has_word)
    with monkeypatch.context() as patch:  # no model is asked for what the journal has
        patch.setattr(asker, "natural_answers", None)
        assert wild(run(protocol="wild", judge=has_word, resume=path)) == again.metrics
        assert run(protocol="wild", resume=path).setting["judge"] == "exact"
