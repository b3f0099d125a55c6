"""Looks at the model, against what can be computed by hand, and what a Session does then."""

import copy
import json
import math

import pytest
import torch
from helpers import same_bits, state

from rome_fast import HealthCheck, Session
from rome_fast.errors import (
    EditWarning,
    InvalidArgumentError,
    JournalError,
    MissingExtraError,
    SessionWarning,
    UnhealthyError,
)
from rome_fast.prompt.ids import text_ids

TEXTS = ("Marie Curie worked in physics and chemistry.", "A short story about tea.")
PROMPTS = ("The capital of Japan is", "It is a", "He is", "The founder is Steve Jobs")


def perplexity(model, tok):
    nll = []
    for text in TEXTS:
        ids = torch.tensor([text_ids(tok, text)])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].double().log_softmax(-1)
        nll.append(-log_probs.gather(1, ids[0, 1:, None])[:, 0])
    return math.exp(torch.cat(nll).mean())


def answers(model, tok, prompts=PROMPTS):
    with torch.no_grad():
        return [
            int(model(torch.tensor([text_ids(tok, prompt)])).logits[0, -1].argmax())
            for prompt in prompts
        ]


def test_figures_are_those_of_the_model(tiny, options, requests):
    model, tok = tiny
    before, said = perplexity(model, tok), answers(model, tok)
    weight = model.get_parameter(
        "transformer.h.1.mlp.c_proj.weight"
        if hasattr(model, "transformer")
        else "model.layers.1.mlp.down_proj.weight"
    )
    base = weight.detach().clone()
    check = HealthCheck(every=0, texts=TEXTS, prompts=PROMPTS)
    with Session(model, tok, **{**options, "health": check}, form="weight") as session:
        assert session.health().problems == ()
        results = session.edit_many(requests, progress=False)
        health = session.health()
    assert health.n_edits == health.last_edit == 6
    assert health.perplexity == pytest.approx(perplexity(model, tok) / before, rel=1e-4)
    now = answers(model, tok)
    assert health.neighbourhood == sum(a == b for a, b in zip(said, now, strict=True)) / 4
    asked = answers(model, tok, [result.request.text for result in results])
    targets = [tok(" " + r.request.target)["input_ids"][-1] for r in results]
    assert health.retention == sum(a == b for a, b in zip(asked, targets, strict=True)) / 6
    [(name, norm)] = health.update_norms.items()
    assert norm == pytest.approx(float((weight.detach() - base).norm() / base.norm()), rel=1e-4)
    assert health.ranks == {name: 6}
    assert health.kl > 0


def test_a_look_before_any_edit_finds_nothing_changed(gpt2_session):
    session, model = gpt2_session
    before = state(model)
    health = session.health()
    assert (health.n_edits, health.retention, health.neighbourhood) == (0, None, None)
    assert health.perplexity == pytest.approx(1.0, rel=1e-6)
    assert health.healthy
    assert same_bits(model, before)


def test_the_first_look_may_come_late(gpt2, options, requests):
    """The unedited model is looked at with the edits taken out for a moment."""
    model, tok = gpt2
    figures = []
    for early in (True, False):
        with Session(model, tok, **options, form="weight") as session:
            if early:
                session.health()
            session.edit_many(requests[:3], progress=False)
            edited = state(model)
            figures.append(session.health())
            assert same_bits(model, edited)
            session.undo(3)
    assert figures[0] == figures[1]


def unwell(**more):
    """A check that every edited model fails."""
    return HealthCheck(every=2, texts=TEXTS, prompts=PROMPTS, max_perplexity=0.0, **more)


def lenient(**more):
    """A check that no edited model fails."""
    limits = {"max_perplexity": 1e9, "max_spread": 1e9, "min_retention": 0.0}
    return HealthCheck(**{"texts": TEXTS, "prompts": (), "horizon": 0, **limits, **more})


def test_warn_goes_on(gpt2, options, requests):
    model, tok = gpt2
    check = unwell(on_unhealthy="warn")
    with Session(model, tok, **{**options, "health": check}, form="weight") as session:
        session.edit(requests[0])
        with pytest.warns(SessionWarning, match=r"UNHEALTHY: perplexity .* \(limit 0\.0\)"):
            session.edit(requests[1])
        assert session.edit(requests[2]).edit_id == 3


def test_stop_ends_the_sequence_until_it_is_healthy_again(gpt2, options, requests, monkeypatch):
    model, tok = gpt2
    check = unwell(on_unhealthy="stop")
    with Session(model, tok, **{**options, "health": check}, form="weight") as session:
        stream = session.stream(requests, progress=False)
        with pytest.warns(SessionWarning, match="UNHEALTHY"):
            assert [next(stream).edit_id, next(stream).edit_id] == [1, 2]
        before = state(model)
        remedy = r"has stopped: 2 edits.* Take edits out with undo\(\) .* then call health"
        with pytest.raises(UnhealthyError, match=remedy):
            next(stream)
        with pytest.raises(UnhealthyError):
            session.edit(requests[3])
        assert same_bits(model, before)
        assert not session.health().healthy
        monkeypatch.setattr("rome_fast.session.health.HealthCheck.problems", lambda *_: ())
        assert session.health().healthy
        assert session.edit(requests[3]).edit_id == 3


def test_rollback_goes_back_to_the_last_healthy_look(gpt2, options, requests, monkeypatch):
    model, tok = gpt2
    check = lenient(every=2, on_unhealthy="rollback")
    with Session(model, tok, **{**options, "health": check}, form="weight") as session:
        session.edit_many(requests[:2], progress=False)
        healthy = state(model)
        session.edit(requests[2])
        monkeypatch.setattr("rome_fast.session.health.HealthCheck.problems", lambda *_: ("is ill",))
        with pytest.warns(SessionWarning, match="is ill"):
            with pytest.raises(UnhealthyError, match="edits 3 to 4 were undone"):
                session.edit(requests[3])
        assert same_bits(model, healthy)
        assert [edit.edit_id for edit in session.log.holding()] == [1, 2]


def test_every_counts_edits_not_calls(gpt2, options, requests):
    model, tok = gpt2
    check = lenient(every=3)
    with Session(model, tok, **{**options, "health": check}, form="weight") as session:
        session.edit_many(requests, order="independent", window=2, progress=False)
        assert [look.last_edit for look in session.checks] == [4]
        session.undo(3)
        session.edit(requests[5])
        assert [look.last_edit for look in session.checks] == [4, 7]


def test_curve_as_data_and_as_a_picture(gpt2, options, requests, tmp_path):
    pytest.importorskip("matplotlib")
    model, tok = gpt2
    check = lenient(every=2, prompts=PROMPTS, min_neighbourhood=0.0)
    with Session(model, tok, **{**options, "health": check}, form="weight") as session:
        session.edit_many(requests, progress=False)
        session.save_checks(tmp_path / "curve.json")
        session.save_checks(tmp_path / "curve.svg")
        rows = json.loads((tmp_path / "curve.json").read_text())
        assert rows == [look.to_json() | {"problems": []} for look in session.checks]
    assert [row["n_edits"] for row in rows] == [2, 4, 6]
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_a_picture_without_matplotlib_names_the_extra(gpt2_session, tmp_path, monkeypatch):
    session, _ = gpt2_session
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"rome-fast\[plot\]"):
        session.save_checks(tmp_path / "curve.png")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every": -1}, "health.every must be a whole number of 0 or more, got -1"),
        ({"sample": 2.5}, "health.sample must be a whole number"),
        ({"max_perplexity": math.nan}, "health.max_perplexity must be a number .* inf, got nan"),
        ({"min_retention": 90}, "health.min_retention must be a number between 0 and 1, got 90"),
        ({"min_retention": "1"}, "health.min_retention must be a number .*, got '1'"),
        ({"texts": "one text"}, "health.texts must be a list of strings, not one 'one text'"),
        ({"texts": [5]}, r"health.texts\[0\] must be a string, got 5"),
        ({"texts": 5}, "health.texts must be a list of strings, got 5"),
        ({"prompts": 5}, "health.prompts must be a list of strings, got 5"),
        ({"prompts": ["It is", 5]}, r"health.prompts\[1\] must be a string, got 5"),
        ({"prompts": "It is"}, "health.prompts must be a list of strings"),
        ({"on_unhealthy": "panic"}, "health.on_unhealthy must be one of"),
    ],
)
def test_bad_checks_are_named(fields, message):
    with pytest.raises(InvalidArgumentError, match=message):
        HealthCheck(**fields)


def ruined_beyond(model, place):
    """The model's logits are NaN from this place of a text on: short prompts are as before."""
    model.transformer.wpe.weight.data[place:] = math.nan


LONG = "Marie Curie worked in physics and chemistry. " * 12


def test_a_ruined_model_is_unhealthy(gpt2, options, requests):
    model, tok = gpt2
    place = 40
    assert place < len(text_ids(tok, LONG))
    check = HealthCheck(every=2, texts=[LONG], on_unhealthy="rollback", min_retention=0.0)
    with Session(model, tok, **{**options, "health": check}, retain=0.0, form="weight") as session:
        weight = model.transformer.h[1].mlp.c_proj.weight
        before = weight.detach().clone()
        session.edit(requests[0])
        ruined_beyond(model, place)
        with pytest.warns(SessionWarning, match="UNHEALTHY: logits are not finite"):
            with pytest.raises(UnhealthyError, match="edits 1 to 2 were undone"):
                session.edit(requests[1])
        assert torch.equal(weight, before)
        [look] = session.checks
        assert (look.perplexity, look.kl, look.retention) == (math.inf, math.inf, None)


def test_a_perplexity_beyond_floats_is_unhealthy(gpt2, options, requests):
    model, tok = gpt2
    check = HealthCheck(every=0, texts=TEXTS)
    with Session(model, tok, **{**options, "health": check}, form="weight") as session:
        assert session.health().healthy
        model.transformer.wte.weight.data.mul_(1e6)
        assert session.health().problems == ("perplexity is not finite",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"texts": ()}, "health.texts must have a text with a token after another"),
        ({"texts": ("a",)}, "health.texts must have a text with a token after another"),
        ({"prompts": ("It is", "")}, r"health.prompts has one of 0 tokens, ''"),
        ({"prompts": ("river " * 600,)}, r"health.prompts has one of \d+ tokens, 'river"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_at_once(gpt2, options, tmp_path, fields, message):
    model, tok = gpt2
    journal = tmp_path / "edits.journal"
    with pytest.raises(InvalidArgumentError, match=message):
        Session(
            model,
            tok,
            **{**options, "health": HealthCheck(**fields)},
            journal=journal,
            form="weight",
        )
    assert not journal.exists()


def test_a_look_that_fails_is_a_warning(gpt2, options, requests, monkeypatch):
    model, tok = gpt2
    check = lenient(every=1)
    with Session(model, tok, **{**options, "health": check}, form="weight") as session:

        def full(fields):
            raise JournalError("the disk is full")

        monkeypatch.setattr(session._ledger, "note", full)
        with pytest.warns(SessionWarning, match="no look .* after edit 1: the disk is full"):
            assert session.edit(requests[0]).edit_id == 1
        monkeypatch.undo()
        session.edit(requests[1])
        assert [look.last_edit for look in session.checks] == [2]


def test_a_rollback_that_cannot_be_written_down_stops(gpt2, options, requests, monkeypatch):
    model, tok = gpt2
    check = unwell(on_unhealthy="rollback")
    with Session(model, tok, **{**options, "health": check}, form="weight") as session:

        def full(numbers):
            raise JournalError("the disk is full")

        monkeypatch.setattr(session._ledger, "take_out", full)
        session.edit(requests[0])
        with pytest.warns(SessionWarning, match="UNHEALTHY"):
            assert session.edit(requests[1]).edit_id == 2
        with pytest.raises(UnhealthyError, match="stay: the disk is full"):
            session.edit(requests[2])


def test_resume_remembers_a_stop(gpt2, options, requests, tmp_path):
    (model, tok), (fresh, _) = gpt2, copy.deepcopy(gpt2)
    path = tmp_path / "edits.journal"
    check = unwell(on_unhealthy="stop")
    with Session(
        model, tok, **{**options, "health": check}, journal=path, form="weight"
    ) as session:
        session.edit(requests[0])
        with pytest.warns(SessionWarning, match="UNHEALTHY"):
            session.edit(requests[1])
    with Session.resume(path, fresh, tok, second_moment="identity") as session:
        with pytest.raises(UnhealthyError, match="the Session has stopped: 2 edits"):
            session.edit(requests[2])


@pytest.mark.parametrize("resumed", [False, True])
def test_rollback_brings_back_what_was_taken_out_since(
    gpt2, options, requests, monkeypatch, tmp_path, resumed
):
    (model, tok), (fresh, _) = gpt2, copy.deepcopy(gpt2)
    path = tmp_path / "edits.journal"
    check = lenient(every=3, on_unhealthy="rollback")
    session = Session(model, tok, **{**options, "health": check}, journal=path, form="weight")
    session.edit_many(requests[:2], progress=False)
    session.revert(1)
    session.edit(requests[2])  # a healthy look: 2 and 3 hold
    healthy = state(model)
    session.revert(2)
    session.edit(requests[3])
    if resumed:
        session.close()
        model, session = fresh, Session.resume(path, fresh, tok, second_moment="identity")
    session.edit(requests[4])
    monkeypatch.setattr("rome_fast.session.health.HealthCheck.problems", lambda *_: ("is ill",))
    with pytest.warns(SessionWarning, match="is ill"):
        with pytest.raises(UnhealthyError, match="edits 4 to 6 were undone"):
            session.edit(requests[5])
    assert [edit.edit_id for edit in session.log.holding()] == [2, 3]
    assert same_bits(model, healthy)
    assert session.redo() == [4]
    session.close()


@pytest.mark.filterwarnings("always")
def test_warnings_point_at_the_caller(gpt2, options, requests):
    model, tok = gpt2
    check = HealthCheck(every=1, texts=TEXTS, max_perplexity=0.0, on_unhealthy="warn")
    with Session(model, tok, **{**options, "health": check}, form="weight") as session:
        with pytest.warns():
            for request in requests[:2]:
                session.edit(request)  # so that it is edited again below, which warns
        again = [{**request, "target_new": "river"} for request in requests[:2]]
        with pytest.warns() as seen:
            session.edit(again[0])
            session.edit_many(again[1:], progress=False)
    assert {w.filename for w in seen} == {__file__}
    assert {w.category for w in seen} == {EditWarning, SessionWarning}
