"""Records of several edits: made together, judged as one case, refused as one."""

from __future__ import annotations

import copy
import dataclasses
import json
import statistics

import pytest
import reference
import torch
from helpers import CONTEXTS, same_bits, state

import rome_fast
from rome_fast import EditRecord, EditRequest, Evaluation
from rome_fast.cli.edit import _requests
from rome_fast.editor import Editor
from rome_fast.errors import EditRejectedError, InvalidRequestError
from rome_fast.evaluate.records import Question

SETTINGS = {"second_moment": "identity", "context_templates": CONTEXTS}


@pytest.fixture(scope="module")
def _demo():
    model, tok, facts = rome_fast.demo.load()
    return model.double(), tok, facts


@pytest.fixture
def demo(_demo):
    """(model, tok, [one edit, two of two subjects with questions about both])."""
    model, tok, facts = _demo
    one, two, three = (fact.record() for fact in facts[:600:200])
    hops = {"multi_hop": (*two.neighborhood[:1], Question(two.request.text, two.request.target))}
    return (
        copy.deepcopy(model),
        tok,
        [one, dataclasses.replace(two, also=(three,), portability=hops)],
    )


def run(demo, mode="single", **changes):
    options = {**SETTINGS, "generate_tokens": 0, "progress": False, **changes}
    return rome_fast.evaluate(*demo, mode, **options)


def pairs(made, record, before):
    """The values of a record of two edits, from the plain values of each with both in the model."""
    values = [reference.values(now, b) for now, b in zip(made, before, strict=True)]
    counts = [(1, len(fact.paraphrases), len(fact.neighborhood)) for fact in record.facts]
    for name in values[0].keys() & values[1].keys():
        kind = 0 if name.startswith(("rewrite", "E")) else 1 if name.startswith(("re", "P")) else 2
        n = [count[kind] for count in counts]
        yield name, sum(v[name] * k for v, k in zip(values, n, strict=True)) / sum(n)


def test_they_are_solved_together_and_all_of_their_questions_asked(demo):
    model, tok, records = demo
    before = state(model)
    unedited = [reference.answers(model, tok, fact) for fact in records[1].facts]
    found = run(demo)
    assert same_bits(model, before)
    case = found.cases[1]
    with rome_fast.trial(
        model, tok, records[1].requests, order="independent", progress=False, **SETTINGS
    ) as results:
        assert [result.window for result in results] == [2, 2]
        assert all(result.success for result in results)
        now = [reference.answers(model, tok, fact) for fact in records[1].facts]
        change = sum(result.update.dense().double() for result in results)
    after = case.stages["after"].values
    expected = dict(pairs(now, records[1], unedited))
    assert {"ES", "PS", "NS", "rewrite_exact", "neighborhood_unchanged"} <= expected.keys()
    assert {name: after[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert after["rewrite_exact"] == 1
    assert case.update_norm == pytest.approx(float(change.norm()), rel=1e-6)
    assert case.losses == pytest.approx([x for r in results for x in r.losses], rel=1e-6)
    assert case.requests == records[1].requests and case.generation_prompts == tuple(
        request.text for request in records[1].requests
    )
    # Those of its only edit are what they are without such a record.
    alone = run((model, tok, records[:1])).cases[0]
    assert found.cases[0].stages["after"].values == pytest.approx(
        alone.stages["after"].values, abs=1e-9
    )


def test_any_question_of_a_chain_is_enough(demo):
    found = run(demo)
    before, after = (found.cases[1].stages[stage].values for stage in ("before", "after"))
    answers = found.cases[1].stages["after"].answers["portability.multi_hop"]
    assert answers[1].exact and after["portability.multi_hop.any"] == 1
    said = [
        answer.exact for answer in found.cases[1].stages["before"].answers["portability.multi_hop"]
    ]
    assert before["portability.multi_hop.any"] == float(any(said))
    assert found.metrics["after"]["portability.multi_hop.any"].n == 1
    assert "portability.multi_hop.any" in str(found)


def test_edits_of_one_subject_are_made_one_after_the_other(demo):
    model, tok, records = demo
    request = records[0].request
    same = EditRecord(0, EditRequest(f"It is said that {request.prompt}", request.subject, "a"))
    record = dataclasses.replace(records[0], also=(same,))
    before = state(model)
    case = run((model, tok, [record])).cases[0]
    assert case.error is None and same_bits(model, before)
    assert len(case.stages["after"].answers["rewrite_new"]) == 2


@pytest.mark.parametrize("form", ["weight", pytest.param("neuron", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("mode", ["single", "sequential"])
def test_one_that_is_refused_refuses_all(demo, monkeypatch, mode, form):
    model, _, records = demo
    before, plain = state(model), Editor.find
    refused = records[1].also[0].request

    def find(editor, requests, answers=True):
        if refused in requests:
            raise EditRejectedError("refused")
        return plain(editor, requests, answers)

    monkeypatch.setattr(Editor, "find", find)
    settings = {"second_moment": None} if form != "weight" else {}
    found = run(demo, mode, form=form, **settings)
    assert [case.error for case in found.cases] == [None, "EditRejectedError: refused"]
    assert same_bits(model, before)
    case = found.cases[1]
    assert case.update_norm is None and case.also == (refused,)
    stages = case.stages
    if mode == "single":
        expected = {n: v for n, v in stages["after"].values.items() if n in stages["before"].values}
        assert expected == stages["before"].values
        assert stages["after"].values["neighborhood_unchanged"] == 1
    else:
        assert found.retention[-1].n_edits == 1


def test_in_a_sequence_they_are_made_one_after_the_other(demo, tmp_path):
    model, tok, records = demo
    before = state(model)
    kept = tmp_path / "journal.jsonl"
    found = run(demo, "sequential", resume=kept, generate_tokens=2)
    assert same_bits(model, before)
    assert [point.n_edits for point in found.retention] == [1, 3]
    assert found.retention[-1].retained == 1
    requests = [request for record in records for request in record.requests]
    made = rome_fast.edit_many(model, tok, requests, progress=False, **SETTINGS)
    answers = [reference.answers(model, tok, fact)["E"][0][1] for fact in records[1].facts]
    made[0]._undo.rewind()
    prob = found.cases[1].stages["edit_time"].values["rewrite_prob"]
    assert prob == pytest.approx(statistics.mean(answers), abs=1e-6)
    assert len(found.cases[1].stages["edit_time"].generations) == 2
    # What the file holds is not edited again, and gives the same.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Editor, "edit", lambda *args, **options: pytest.fail("edited again"))
        again = run(demo, "sequential", resume=kept, generate_tokens=2)
    assert again.cases == found.cases and same_bits(model, before)
    lines = [json.loads(line) for line in kept.open()][1:]
    assert [len(line["updates"]) for line in lines if "updates" in line] == [1, 2]


def test_a_case_is_saved_with_all_of_its_requests(demo, tmp_path):
    found = run(demo, protocol="wild,rome")
    path = tmp_path / "found.json"
    found.save(path)
    again = Evaluation.load(path)
    assert again.cases == found.cases and again.cases[1].requests == demo[2][1].requests
    groups = [reading.group for reading in again.cases[1].stages["after"].readings]
    assert groups.count("rewrite") == 2


@pytest.mark.exhaustive
def test_all_of_their_texts_are_begun_and_compared(demo):
    model, tok, records = demo
    texts = {"generation_prompts": ("One day",), "reference_texts": ("a b c",)}
    also = dataclasses.replace(records[1].also[0], **texts)
    record = dataclasses.replace(records[1], also=(also,), generation_prompts=("Then",))
    [case] = run((model, tok, [record]), generate_tokens=1).cases
    edited = [request.text for request in record.requests]
    assert list(case.generation_prompts) == [*edited, "Then", "One day"]
    assert "reference_score" in case.stages["after"].values


def test_half_precision_weights_get_their_bits_back(demo):
    model, tok, records = demo
    model.to(torch.bfloat16)
    before = state(model)
    found = run((model, tok, records[1:]))
    assert found.cases[0].error is None and same_bits(model, before)


def test_what_is_no_such_record_is_refused(demo):
    record = demo[2][1]
    for wrong in (record.request, record):
        with pytest.raises(InvalidRequestError, match="also must hold EditRecords without an also"):
            dataclasses.replace(record, also=(wrong,))


def test_they_are_read_from_flat_records():
    fact = {"prompt": "{} is in", "subject": "Paris", "target_new": "Rome"}
    other = {
        "prompt": "{} is in",
        "subject": "Rome",
        "target_new": "Spain",
        "ground_truth": "Italy",
    }
    [record] = rome_fast.load_records([{**fact, "case_id": 4, "also": [other]}])
    assert [(f.case_id, f.request.subject, f.target_true) for f in record.facts] == [
        (4, "Paris", None),
        (4, "Rome", "Italy"),
    ]
    for wrong, reason in (("x", "also must be a dict"), ({**other, "also": [fact]}, "also of its")):
        with pytest.raises(rome_fast.errors.RecordError, match=reason):
            rome_fast.load_records([{**fact, "also": [wrong]}])


def test_the_command_edits_all_of_them(tmp_path):
    fact = {"prompt": "{} is in", "subject": "Paris", "target_new": "Rome"}
    file = tmp_path / "facts.json"
    file.write_text(json.dumps([{**fact, "also": [{**fact, "subject": "Oslo"}]}, fact]))
    requests = _requests(None, None, None, file, "auto", None, False)
    assert [request.subject for request in requests] == ["Paris", "Oslo", "Paris"]
