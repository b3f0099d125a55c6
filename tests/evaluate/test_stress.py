"""What is asked under stress, and its values against a forward a question."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import reference
from helpers import CONTEXTS, same_bits, state

import rome_fast
from rome_fast import EditRecord, EditRequest
from rome_fast.errors import EditWarning, InvalidArgumentError
from rome_fast.evaluate import stress as room
from rome_fast.evaluate.metrics import questions_of
from rome_fast.evaluate.records import Question
from rome_fast.evaluate.scoring import Score
from rome_fast.evaluate.stress import Stress, negation_of, stress_values
from rome_fast.moment.collect.ordinary import ORDINARY_TEXT

LINES = ORDINARY_TEXT.read_text(encoding="utf-8").splitlines()
NAMES = ("stress_prefix_50", "stress_negated", "stress_reverse", "stress_same_subject")


def record(number, prompt, subject, target, true=None, **more):
    return EditRecord(number, EditRequest(prompt, subject, target), target_true=true, **more)


# The second and third are about the subject of the first, in other letters; the fourth says the
# first again, the fifth in other words; the last is about another subject.
RECORDS = [
    record(
        *(0, "The founder is {}", "Steve Jobs", "capital", "Apple computers"),
        portability={
            "Reversal": (Question("The capital was founded by", "Steve Jobs"),),
            "one_hop": (Question("He was born in", "Rome"),),
        },
    ),
    record(1, "The mother tongue of {} is", "STEVE JOBS", "French", "English speaks"),
    record(2, "We drink tea with {}", "steve jobs", "near the river"),
    record(3, "The founder  is {}", "Steve Jobs", "river"),
    record(4, "A company of {} is the", "Steve Jobs", "Capital"),
    record(5, "It is {}", "Marie Curie", "women", "house"),
]


@pytest.fixture
def options(hparams):
    return {
        "hparams": hparams,
        "second_moment": "identity",
        "context_templates": CONTEXTS,
        "generate_tokens": 0,
        "progress": False,
    }


def stressed(model, tok, records=RECORDS, mode="single", **options):
    return rome_fast.evaluate(model, tok, records, mode, stress=True, **options)


def by_hand(model, tok, asked, before=None):
    """(values, what is said of the other facts), a forward a question.

    Args:
        asked: by name, the (prompt, answer) pairs; of other facts with the number of places.
    """

    def said(prompt, target):
        return reference.ask(model, tok, prompt, target)

    values = {}
    for name in ("stress_prefix_50", "stress_prefix_200"):
        for pair in asked.get(name, ()):
            values[name] = float(said(*pair)[2] == said(*pair)[3])
    for pair in asked.get("stress_negated", ()):
        values["stress_negated"] = float(said(*pair)[2] != said(*pair)[3])
    for pair in asked.get("stress_reverse", ()):
        values["stress_reverse"] = reference.share(*said(*pair)[2:])
    others = [said(prompt, target)[2][:n] for prompt, target, n in asked.get("others", ())]
    if before:
        shares = [reference.share(a, b) for a, b in zip(others, before, strict=True)]
        values["stress_same_subject"] = sum(shares) / len(shares)
    return values, others


def test_values_are_those_of_a_forward_a_question(tiny, options):
    model, tok = tiny
    weights = state(model)
    evaluation = stressed(model, tok, **options)
    assert same_bits(model, weights)
    stages = evaluation.cases[0].stages
    prefixed = stages["before"].answers["stress_prefix_50"][0].prompt
    asked = {
        "stress_prefix_50": [(prefixed, "capital")],
        "stress_negated": [("It is not true that the founder is Steve Jobs", "capital")],
        "stress_reverse": [("The capital was founded by", "Steve Jobs")],
        "others": [
            ("The mother tongue of STEVE JOBS is", "English speaks", None),
            ("We drink tea with steve jobs", "near", 1),
        ],
    }
    before, others = by_hand(model, tok, asked)
    keys = ("hparams", "second_moment", "context_templates")
    result = rome_fast.edit(model, tok, RECORDS[0].request, **{k: options[k] for k in keys})
    after, _ = by_hand(model, tok, asked, others)
    result.revert()
    for stage, wanted in (("before", before), ("after", after)):
        found = {k: v for k, v in stages[stage].values.items() if k.startswith("stress_")}
        assert found == pytest.approx(wanted), stage
    assert set(after) == set(NAMES) and "stress_same_subject" not in before
    values = stages["after"].values
    assert values["stress_reverse"] == values["portability.Reversal"]
    for name in NAMES:
        cases = [c.stages["after"].values for c in evaluation.cases]
        mean = [values[name] for values in cases if name in values]
        metric = evaluation.metrics["after"][name]
        assert (metric.mean, metric.n) == (pytest.approx(sum(mean) / len(mean)), len(mean))


def test_an_edit_is_said_behind_a_prefix_and_after_its_negation(gpt2, options):
    """The figures can be other than nought and one: the edit moves them."""
    evaluation = stressed(*gpt2, **options)
    for name in ("stress_prefix_50", "stress_negated"):
        before, after = (evaluation.metrics[s][name].mean for s in ("before", "after"))
        assert before != after, name


def test_a_prefix_is_ordinary_text_of_its_own(llama):
    model, tok = llama
    model.config.max_position_embeddings = 512
    stress = Stress(model, tok, RECORDS, alone=True)
    seen = set()
    for number, one in enumerate(RECORDS):
        sheet = stress.sheet(number)
        for n_tokens in (50, 200):
            [question], [encoded] = sheet[f"stress_prefix_{n_tokens}"]
            prefix, prompt = question.prompt.rsplit("\n", 1)
            assert (prompt, question.target) == (one.request.text, one.request.target)
            first, *whole = prefix.split("\n")
            assert any(line.endswith(first) for line in LINES)
            assert all(line in LINES for line in whole)
            ids = tok(prefix, add_special_tokens=False)["input_ids"]
            assert abs(len(ids) - n_tokens) <= 2
            assert encoded.prompt_ids[0] == tok.bos_token_id
            seen.add(prefix)
    assert len(seen) == 2 * len(RECORDS)
    alone = Stress(model, tok, RECORDS[5:], alone=True)
    assert alone.sheet(0)["stress_prefix_200"] == stress.sheet(5)["stress_prefix_200"]


@pytest.mark.parametrize("word", ["the", "model", "EDIT"])
def test_a_prefix_holds_neither_subject_nor_target(llama, word):
    model, tok = llama
    model.config.max_position_embeddings = 512
    plain = [record(i, "Item {} is", f"Q{i}", "xyzzy") for i in range(12)]
    for place in ("subject", "target", "true"):
        records = [
            record(0, "Item 0: {} is", word, "xyzzy"),
            *(replace(r, request=replace(r.request, target=word)) for r in plain),
        ]
        if place == "true":
            records = [replace(r, target_true=word) for r in plain]
        stress = Stress(model, tok, records, alone=True)
        for number in range(len(records)):
            [question], _ = stress.sheet(number)["stress_prefix_50"]
            held = question.prompt.rsplit("\n", 1)[0].casefold().replace("_", " _ ").split()
            assert word.casefold() not in [part.strip(".,:;()`'\"") for part in held]


def test_a_chinese_prompt_stands_behind_chinese_text(gpt2):
    model, tok = gpt2
    model.config.max_position_embeddings = 4096
    stress = Stress(model, tok, [record(0, "{}位于", "埃菲尔铁塔", "罗马")], alone=True)
    sheet = stress.sheet(0)
    prefix = sheet["stress_prefix_200"][0][0].prompt.rsplit("\n", 1)[0]
    assert any("\u4e00" <= char <= "\u9fff" for char in prefix)
    assert "stress_negated" not in sheet


def test_where_the_model_has_too_few_positions(gpt2, options):
    model, tok = gpt2
    said = "stress_prefix_200 was not asked of 6 of 6 cases: .*the model's 128 positions"
    with pytest.warns(EditWarning, match=said):
        evaluation = stressed(model, tok, **options)
    assert not evaluation.failed
    assert "stress_prefix_200" not in evaluation.metrics["after"]
    assert evaluation.metrics["after"]["stress_prefix_50"].n == 6
    assert evaluation.setting["notes"][-1].startswith("stress_prefix_200 was not asked")
    # One that is long itself lacks the short prefix alone; its own questions are asked.
    long = record(9, "He is a man. " * 12 + "The founder is {}", "Steve Jobs", "capital")
    evaluation = stressed(model, tok, [long, RECORDS[5]], **options)
    assert "stress_prefix_50 was not asked of 1 of 2 cases" in " ".join(evaluation.setting["notes"])
    assert "rewrite_exact" in evaluation.cases[0].stages["after"].values


@pytest.mark.parametrize(
    ("prompt", "negated"),
    [
        ("{} plays the", "It is not true that Rex plays the"),
        ("The mother tongue of {} is", "It is not true that the mother tongue of Rex is"),
        ("A friend of {} is", "It is not true that a friend of Rex is"),
        ("Anna, sister of {}, is", "It is not true that Anna, sister of Rex, is"),
        ("Which city is {} in?", None),
        ("{}位于", None),
    ],
)
def test_negation(prompt, negated):
    assert negation_of(EditRequest(prompt, "Rex", "x")) == negated


def test_values():
    def said(target, argmax):
        return Score(target, (0.0,) * len(target), argmax)

    scores = {
        "stress_negated": [said((1, 2), (1, 3))],
        "portability.inverse_relation": [said((1, 2), (1, 3))],
        "portability.Reversed": [said((1,), (1,))],
        "portability.one_hop": [said((1,), (2,))],
        "stress_same_subject_true": [said((1, 2), (4, 5))],
        "stress_same_subject_new": [said((1, 2), (4, 5))],
    }
    before = {name: [said((1, 2), (4, 6))] for name in scores if "same_subject" in name}
    values = stress_values(scores, before)
    assert values == {
        "stress_negated": 1.0,  # not the whole target
        "stress_reverse": 0.75,
        "stress_same_subject": 0.75,  # a half of the places, and the first place
    }
    assert "stress_same_subject" not in stress_values(scores)
    assert stress_values({"stress_negated": [said((1,), (1,))]}) == {"stress_negated": 0.0}


def test_other_facts_of_a_subject(gpt2):
    model, tok = gpt2
    asked = [set(Stress(model, tok, RECORDS, alone=True).sheet(i)) for i in range(6)]
    both = {"stress_same_subject_true", "stress_same_subject_new"}
    assert [bool(names & both) for names in asked] == [True] * 5 + [False]
    alike = [replace(RECORDS[0], paraphrases=("The mother tongue of Steve Jobs is",)), *RECORDS[1:]]
    sheet = Stress(model, tok, alike, alone=True).sheet(0)
    assert "stress_same_subject_true" not in sheet  # it is the same fact, by the record's own word
    many = [record(i, f"Place {i} of {{}} is", "Rex", f"house {i}") for i in range(15)]
    [questions, _] = Stress(model, tok, many, alone=True).sheet(0)["stress_same_subject_new"]
    assert [q.prompt for q in questions] == [f"Place {i} of Rex is" for i in range(1, 11)]


def test_a_sequence_asks_no_other_facts(gpt2, options):
    evaluation = stressed(*gpt2, mode="sequential", **options)
    for stage in ("before", "edit_time", "after"):
        assert set(NAMES[:3]) <= set(evaluation.metrics[stage])
        assert "stress_same_subject" not in evaluation.metrics[stage]


def test_off_nothing_changes(gpt2, options, monkeypatch):
    model, tok = gpt2
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(None))
    on = stressed(model, tok, **options)
    n_on = len(forwards)
    forwards.clear()
    monkeypatch.setattr(room, "ORDINARY_TEXT", None)  # nothing of it is even read
    off = rome_fast.evaluate(model, tok, RECORDS, **options)
    assert len(forwards) < n_on
    assert on.setting == {**off.setting, "stress": True, "notes": on.setting["notes"]}
    assert "stress" not in off.setting
    for a, b in zip(on.cases, off.cases, strict=True):
        for stage in b.stages:
            assert set(b.stages[stage].answers) == set(questions_of(RECORDS[b.index]))
            assert not any(name.startswith("stress") for name in b.stages[stage].values)
            kept = {name: a.stages[stage].values[name] for name in b.stages[stage].values}
            assert kept == pytest.approx(b.stages[stage].values, rel=1e-3)


def test_a_journal_is_of_one_kind(gpt2, options, tmp_path):
    model, tok = gpt2
    options["resume"] = tmp_path / "journal.jsonl"
    first = stressed(model, tok, RECORDS[:3], **options)
    with pytest.raises(InvalidArgumentError, match="stress was True, now it is None"):
        rome_fast.evaluate(model, tok, RECORDS[:3], **options)
    # The last case is gone; the others are read, and count in the note too.
    lines = options["resume"].read_text().splitlines(keepends=True)
    options["resume"].write_text("".join(lines[:-1]))
    again = stressed(model, tok, RECORDS[:3], **options)
    assert again.setting == first.setting
    assert again.metrics["after"].keys() == first.metrics["after"].keys()
    for name in NAMES:
        assert again.metrics["after"][name] == first.metrics["after"][name]


def test_reports_show_it(gpt2, options, tmp_path):
    evaluation = stressed(*gpt2, RECORDS[:3], **options)
    said = str(evaluation)
    assert "Under stress" in said and all(name in said for name in NAMES)
    evaluation.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "behind 50 tokens of other text" in page
    assert "It is not true that the founder is Steve Jobs" in page
    again = type(evaluation).from_json(json.loads(json.dumps(evaluation.to_json())))
    assert again.metrics == evaluation.metrics and again.setting["stress"] is True


def test_a_record_of_several_edits_is_asked_of_each(gpt2, options):
    model, tok = gpt2
    other = record(1, "We drink tea with {}", "Ada Lovelace", "near")
    chain = replace(record(0, "The founder is {}", "Steve Jobs", "capital"), also=(other,))
    found = stressed(model, tok, [chain], **options)
    assert not found.failed
    ends = {"stress_negated": negation_of(other.request), "stress_prefix_50": other.request.text}
    for name, end in ends.items():
        answers = found.cases[0].stages["after"].answers[name]
        assert [answer.target.strip() for answer in answers] == ["capital", "near"]
        assert answers[1].prompt.endswith(end)
