"""An evaluation that was cut off goes on where it stopped, or says why it cannot."""

from __future__ import annotations

import json
import sys

import pytest
from helpers import CONTEXTS, REQUEST, same_bits, state

import rome_fast
from rome_fast.editor import Editor
from rome_fast.errors import InvalidArgumentError
from rome_fast.evaluate.journal import n_finished
from rome_fast.evaluate.judge import Judge

REQUESTS = [
    REQUEST,
    {"prompt": "We drink tea with {}", "subject": "Ada Lovelace", "target_new": "near"},
    {"prompt": "The old tower is {}", "subject": "Eiffel Tower", "target_new": "women machine"},
    {"prompt": "It is {}", "subject": "Marie Curie", "target_new": "river"},
    {"prompt": "They see {}", "subject": "LeBron James", "target_new": "tea"},
]


@pytest.fixture
def run(gpt2, hparams, tmp_path):
    """evaluate() with a journal at tmp_path / "journal.jsonl", two records a window."""
    model, tok = gpt2
    options = {
        "hparams": hparams.replace(v_num_grad_steps=4),
        "second_moment": "identity",
        "context_templates": CONTEXTS,
        "generate_tokens": 2,
        "window": 2,
        "progress": False,
        "resume": tmp_path / "journal.jsonl",
    }

    def evaluate(records=REQUESTS, **changes):
        return rome_fast.evaluate(model, tok, records, **{**options, **changes})

    evaluate.model, evaluate.path = model, options["resume"]
    return evaluate


@pytest.fixture
def proposed(monkeypatch):
    """The subjects that edits are searched for, in order."""
    subjects, plain = [], Editor.propose

    def propose(editor, requests):
        subjects.extend(request.subject for request in requests)
        return plain(editor, requests)

    monkeypatch.setattr(Editor, "propose", propose)
    return subjects


def cut_off(run, monkeypatch, after=2):
    """Run until ``after`` windows are in the journal; then Ctrl-C."""
    plain, calls = Editor.propose, []

    def propose(editor, requests):
        calls.append(None)
        if len(calls) > after:
            raise KeyboardInterrupt
        return plain(editor, requests)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Editor, "propose", propose)
        run()


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def cases_in(path):
    return [line["index"] for line in lines_of(path) if "stage" not in line]


def same_findings(found, expected):
    """But for what rounds differently beside other rows."""
    assert found.setting == expected.setting
    for a, b in zip(found.cases, expected.cases, strict=True):
        assert (a.index, a.case_id, a.error) == (b.index, b.case_id, b.error)
        assert a.losses == pytest.approx(b.losses, rel=1e-4)
        for stage in ("before", "after"):
            assert a.stages[stage].generations == b.stages[stage].generations
            assert a.stages[stage].values == pytest.approx(b.stages[stage].values, rel=1e-4)
    for name, metric in expected.metrics["after"].items():
        assert found.metrics["after"][name].mean == pytest.approx(metric.mean, rel=1e-4)
        assert found.metrics["after"][name].n == metric.n == 5


def test_only_what_is_missing_is_done(run, proposed, monkeypatch):
    expected = run(resume=None)
    before = state(run.model)
    cut_off(run, monkeypatch)
    assert same_bits(run.model, before)
    proposed.clear()
    same_findings(run(), expected)
    assert proposed == ["LeBron James"]
    proposed.clear()
    same_findings(run(), expected)
    assert proposed == []


@pytest.fixture
def asked(monkeypatch):
    """How many records the model has been asked about, each time."""
    counts, plain = [], Judge.said

    def said(judge, numbers, updates):
        counts.append(len(numbers))
        return plain(judge, numbers, updates)

    monkeypatch.setattr(Judge, "said", said)
    return counts


def test_the_unedited_model_is_not_asked_twice(run, asked, monkeypatch):
    """Killed while it is asked, and while the end of a sequence is."""
    monkeypatch.setattr(sys.modules[Judge.__module__], "_AT_ONCE", 2)
    expected = run(resume=None, mode="sequential")
    counted = len(asked)
    for n in range(1, counted):  # a call more each time, until all are made
        asked.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            plain = Judge.said

            def said(judge, numbers, updates, n=n, plain=plain):
                if len(asked) == n:
                    raise KeyboardInterrupt
                return plain(judge, numbers, updates)

            patch.setattr(Judge, "said", said)
            run(mode="sequential")
        kept = [line for line in lines_of(run.path) if line.get("stage") == "before"]
        assert len(kept) == min(2 * n, 5)
        asked.clear()
        same_findings(run(mode="sequential"), expected)
        assert sum(asked) == sum([5, 5, 5]) - sum([2, 2, 1, *[1] * 5, 2, 2, 1][:n])
        run.path.unlink()


@pytest.mark.parametrize("torn", ['{"index": 4, "case', '{"index": 4}', "\n"])
def test_a_torn_end_is_dropped(run, proposed, monkeypatch, torn):
    expected = run(resume=None)
    cut_off(run, monkeypatch)
    whole = run.path.read_bytes()
    run.path.write_bytes(whole + torn.encode())
    proposed.clear()
    same_findings(run(), expected)
    assert proposed == ["LeBron James"]
    assert run.path.read_bytes().startswith(whole)
    assert cases_in(run.path) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"generate_tokens": 3}, "generate_tokens was 2, now it is 3"),
        ({"records": REQUESTS[:4]}, "n_records was 5, now it is 4"),
        ({"variant": "original"}, "hparams.variant was both_keys, now it is original"),
        ({"context_templates": ["{}"]}, "context_templates was"),
    ],
)
def test_another_evaluation_is_not_gone_on_with(run, monkeypatch, changes, told):
    cut_off(run, monkeypatch, after=1)
    journal = run.path.read_bytes()
    with pytest.raises(InvalidArgumentError, match=f"cannot be resumed.*{told}"):
        run(**changes)
    assert run.path.read_bytes() == journal


def test_another_model_is_named(run, monkeypatch):
    cut_off(run, monkeypatch, after=1)
    run.model.transformer.ln_f.bias.data[0] += 1
    with pytest.raises(InvalidArgumentError, match=r"model\.weights was"):
        run()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("my notes", "not a journal"),
        ("my notes\n", "not a journal"),
        ('{"format": "other"}\n', "not a journal"),
    ],
)
def test_foreign_files_are_left_as_they_are(run, content, told):
    run.path.write_text(content)
    with pytest.raises(InvalidArgumentError, match=told):
        run()
    assert run.path.read_text() == content


def test_a_damaged_line_is_named(run):
    run()
    lines = run.path.read_text().splitlines()
    lines[2] = lines[2][:40]
    run.path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InvalidArgumentError, match="line 3 is damaged"):
        run()


def test_c_may_be_collected_first_and_cached_then(run, proposed, monkeypatch, tmp_path):
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path / "cache"))
    run(REQUESTS[:2], second_moment=None)
    del proposed[:]
    run(REQUESTS[:2], second_moment=None)
    assert not proposed


def test_an_empty_file_is_a_new_journal(run):
    run.path.touch()
    run()
    assert cases_in(run.path) == [0, 1, 2, 3, 4] and n_finished(run.path) == 5


@pytest.mark.parametrize("after", [1, 3])
def test_a_sequence_goes_on_where_it_was_cut_off(run, monkeypatch, after):
    texts = ["He plays the piano.", "She lives in Paris."]
    asked = {"mode": "sequential", "held_texts": texts}
    expected = run(**asked, resume=None)
    before, edited = state(run.model), []
    plain = Editor.edit

    def edit(editor, requests, strict):
        if len(edited) == after:
            raise KeyboardInterrupt
        edited.append(requests[0].subject)
        return plain(editor, requests, strict)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Editor, "edit", edit)
        run(**asked)
    assert same_bits(run.model, before)
    assert cases_in(run.path) == list(range(after))
    found = run(**asked)
    assert same_bits(run.model, before)
    same_findings(found, expected)
    for a, b in zip(found.cases, expected.cases, strict=True):
        for stage in ("edit_time", "after"):
            assert a.stages[stage].values == pytest.approx(b.stages[stage].values, rel=1e-3)
    assert [p.n_edits for p in found.retention] == [p.n_edits for p in expected.retention]
    assert [p.kl for p in found.retention] == pytest.approx([p.kl for p in expected.retention])
    # All is there now: nothing is edited again.
    with monkeypatch.context() as patch:
        patch.setattr(Editor, "edit", None)
        same_findings(run(**asked), found)
