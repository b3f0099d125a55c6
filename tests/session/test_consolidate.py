"""Edits bettered together: what is kept, what moves, and that nothing is lost on the way."""

import copy

import pytest
import torch
from helpers import UNWATCHED, same_bits, state

from rome_fast import EditLog, EditRequest, Session, demo
from rome_fast.errors import InvalidArgumentError, JournalError, SessionError
from rome_fast.session.consolidate import Consolidator


@pytest.fixture
def opened(gpt2, options, requests, tmp_path):
    """(session, model, journal) after three edits, two of them of one subject."""
    model, tok = gpt2
    path = tmp_path / "edits.journal"
    with Session(model, tok, **options, journal=path, form="weight") as session:
        again = {**requests[0], "prompt": "They met {}", "target_new": "near"}
        session.edit_many([requests[0], requests[1], again], progress=False)
        yield session, model, path


def asked(session):
    return {e.edit_id: e.update.residual for e in session.log.holding()}


def test_what_edits_ask_for_moves_and_nothing_else(opened):
    session, model, _ = opened
    before, log, weights = asked(session), session.log, state(model)
    made = session.consolidate(steps=3, progress=False)
    after = asked(session)
    assert made.steps == 3 and made.n_edits == 3 and made.seconds > 0
    assert torch.equal(before[1], after[1])  # edit 3 speaks for it
    assert all(not torch.equal(before[n], after[n]) for n in (2, 3))
    for a, b in zip(log.edits, session.log.edits, strict=True):
        assert torch.equal(a.update.key, b.update.key) and a.request == b.request
    [name] = log.base.edited
    moved = [n for n, p in model.state_dict().items() if not torch.equal(p, weights[n])]
    assert set(moved) <= {name, name.replace("transformer.", "")} and moved


def test_the_weight_is_that_of_the_log_and_of_the_journal(opened, gpt2, tmp_path):
    session, model, path = opened
    session.undo(3)
    pristine, tok = copy.deepcopy(model), gpt2[1]
    session.redo(3)
    session.consolidate(steps=2, progress=False)
    whole = state(model)
    session.log.save(tmp_path / "log.safetensors")
    other = copy.deepcopy(pristine)
    EditLog.load(tmp_path / "log.safetensors").apply(other)
    assert same_bits(other, whole)
    session.revert(2)
    without = state(model)
    session.redo()
    assert same_bits(model, whole)
    session.close()
    with Session.resume(path, pristine, tok, second_moment="identity") as resumed:
        assert same_bits(pristine, whole)
        resumed.revert(2)
        assert same_bits(pristine, without)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_fails_on_the_way_changes_nothing(opened, monkeypatch, error):
    session, model, path = opened
    before, size, n_steps, step = state(model), path.stat().st_size, [], Consolidator._step

    def failing(self):
        n_steps.append(1)
        if len(n_steps) == 2:
            raise error
        return step(self)

    monkeypatch.setattr(Consolidator, "_step", failing)
    with pytest.raises(error):
        session.consolidate(steps=5, progress=False)
    assert same_bits(model, before) and path.stat().st_size == size


def test_a_journal_that_cannot_be_written_changes_nothing(opened, monkeypatch):
    session, model, _ = opened
    before, log = state(model), asked(session)

    def full(*_):
        raise JournalError("no space left on device")

    monkeypatch.setattr(session._ledger._journal, "append", full)
    with pytest.raises(JournalError):
        session.consolidate(steps=1, progress=False)
    assert same_bits(model, before)
    assert all(torch.equal(log[n], r) for n, r in asked(session).items())


def test_time_that_is_over_ends_it(opened):
    session, *_ = opened
    made = session.consolidate(steps=10_000, seconds=0.2, progress=False)
    assert 1 <= made.steps < 10_000
    assert f"{made.steps} steps" in str(made)


def test_without_edits_that_are_solved_as_one_there_is_nothing_to_do(gpt2, options, requests):
    for solve in ("joint", "sequential"):
        with Session(*gpt2, **options, form="weight", solve=solve) as session:
            if solve == "sequential":
                session.edit(requests[0])
            with pytest.raises(SessionError, match="nothing to consolidate"):
                session.consolidate()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"steps": 0}, "steps must be a whole number of 1 or more, got 0"),
        ({"steps": True}, "steps must be"),
        ({"seconds": -1}, "seconds must be a finite number above 0"),
        ({"seconds": float("nan")}, "seconds must be"),
        ({"protect": "Paris is"}, "protect must be a list of prompts"),
        ({"protect": ["Paris is", " "]}, r"protect\[1\] must be a prompt"),
        ({"protect": ["tea " * 500]}, "protect has one of .* tokens"),
        ({"protect": ["a"] * 1001}, "protect has 1001 prompts, more than 1000"),
    ],
)
def test_bad_arguments_are_named(opened, arguments, said):
    session, model, _ = opened
    before = state(model)
    with pytest.raises(InvalidArgumentError, match=said):
        session.consolidate(**arguments)
    assert same_bits(model, before)


@pytest.mark.exhaustive
def test_other_subjects_come_back_and_targets_stay():
    """On the embedded model: 40 edits, and prompts of theirs about subjects that are not edited."""
    model, tok, facts = demo.load()
    by_subject = {fact.subject: fact for fact in facts}
    chosen = list(by_subject.values())[:40]
    with Session(model, tok, form="weight", health=UNWATCHED) as session:
        session.edit_many(
            [EditRequest(f.prompt, f.subject, f.target_new) for f in chosen], progress=False
        )
        made = session.consolidate(steps=40, progress=False)
        retention = session.health().retention
    assert made.others[1] < made.others[0]
    assert retention >= 0.9
