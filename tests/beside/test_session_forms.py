"""A Session of edits that only fire for their subject: its log, journal, undo and conflicts."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import same_bits, state

from rome_fast import EditLog, Session, edit
from rome_fast.beside.module import Beside
from rome_fast.errors import (
    EditLogError,
    InvalidArgumentError,
    JournalError,
    SessionError,
)

FORMS = pytest.mark.parametrize("form", ["neuron", "gate"])


def beside(model):
    return next((m for m in model.modules() if isinstance(m, Beside)), None)


def rows(model):
    """Every tensor that stands beside the weight."""
    found = beside(model)
    return {} if found is None else {n: t.clone() for n, t in found.named_buffers()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@FORMS
def test_an_edit_taken_out_is_as_if_it_had_never_been(tiny, options, requests, form):
    """Directions depend on the edits that hold, and on nothing else; what is found, on no other."""
    (model, tok), (other, _), (third, _) = tiny, copy.deepcopy(tiny), copy.deepcopy(tiny)
    with Session(model, tok, form=form, **options) as session:
        results = session.edit_many(requests, progress=False)
        assert all(result.rank_after == 1 for result in results)
        everything, log = rows(model), session.log
        session.revert(2)
        log.revert(2)
        log.apply(other)
        assert same(rows(model), rows(other))
        with Session(third, tok, form=form, **options) as without:
            without.edit_many([requests[0], *requests[2:]], progress=False)
            for name, tensor in rows(model).items():
                torch.testing.assert_close(rows(third)[name], tensor, rtol=1e-4, atol=1e-5)
        session.redo()
        assert same(rows(model), everything)
        results[1].revert()
        results[3].revert()
        assert sorted(session.redo(2)) == [2, 4]
        assert same(rows(model), everything)


@FORMS
def test_undo_redo_and_a_fact_edited_again(tiny, options, requests, form):
    model, tok = tiny
    before = state(model)
    with Session(model, tok, form=form, **options) as session:
        session.edit(requests[0])
        first = rows(model)
        again = session.edit({**requests[0], "target_new": "near"})
        assert again.replaced == (1,) and again.rank_after == 1
        assert len(beside(model).offsets) == 1
        session.undo()
        assert same(rows(model), first)
        session.undo()
        assert same_bits(model, before)
        session.redo()
        assert same(rows(model), first)
        assert f"{form} of norm" in session.log.show()


@FORMS
def test_a_journal_goes_on_where_it_ended(tiny, options, requests, tmp_path, form):
    (model, tok), (other, _), path = tiny, copy.deepcopy(tiny), tmp_path / "edits.journal"
    with Session(model, tok, form=form, journal=path, **options) as session:
        session.edit_many(requests[:3], progress=False)
        session.revert(2)
        left = rows(model)
    with Session.resume(path, other, tok) as session:
        assert same(rows(other), left)
        assert session.edit(requests[3]).form == form
        assert [edit.edit_id for edit in session.log.holding()] == [1, 3, 4]
    assert [edit.form for edit in EditLog.load(path).holding()] == [form] * 3


@FORMS
def test_a_log_is_saved_applied_and_reverted(tiny, options, requests, tmp_path, form):
    (model, tok), (other, _) = tiny, copy.deepcopy(tiny)
    before = state(other)
    with Session(model, tok, form=form, **options) as session:
        session.edit_many(requests, progress=False)
        session.log.save(tmp_path / "log.safetensors")
    log = EditLog.load(tmp_path / "log.safetensors")
    applied = log.apply(other)
    assert same(rows(model), rows(other))
    with pytest.raises(EditLogError, match="has edits beside it already"):
        log.apply(other)
    applied.revert()
    assert same_bits(other, before)
    with pytest.raises(EditLogError, match=r"stand beside a weight.*as_form"):
        log.to_lora(tmp_path / "lora")


def test_all_forms_in_one_session(tiny, options, requests, tmp_path):
    (model, tok), (other, _) = tiny, copy.deepcopy(tiny)
    path, before = tmp_path / "edits.journal", state(model)
    with Session(model, tok, second_moment="identity", journal=path, **options) as session:
        for request, form in zip(requests, ("weight", "neuron", "gate", "weight"), strict=True):
            assert session.edit(request, form=form).form == form
        everything, log = state(model), session.log
    with Session.resume(path, other, tok, second_moment="identity") as session:
        assert same_bits(other, everything)
        session.revert(1)
        session.revert(3)
        session.undo(2)
        assert same_bits(other, before)
    log.apply(other)
    assert same_bits(other, everything)


def test_windows_find_what_single_edits_find(tiny, options, requests):
    (model, tok), (other, _) = tiny, copy.deepcopy(tiny)
    with Session(model, tok, form="neuron", **options) as one:
        one.edit_many(requests, progress=False)
    with Session(other, tok, form="neuron", **options) as many:
        results = many.edit_many(requests, order="independent", window=4, progress=False)
    assert {result.window for result in results} == {4}
    for name, tensor in rows(model).items():
        torch.testing.assert_close(rows(other)[name], tensor, rtol=2e-3, atol=2e-3)


@FORMS
def test_a_journal_that_cannot_be_written_undoes_the_edit(
    tiny, options, requests, tmp_path, monkeypatch, form
):
    model, tok = tiny
    with Session(model, tok, form=form, journal=tmp_path / "j", **options) as session:
        before = state(model)

        def full(*records):
            raise JournalError("no space left on the disk")

        with monkeypatch.context() as patch:
            patch.setattr(session._ledger._journal, "append", full)
            with pytest.raises(JournalError, match="no space"):
                session.edit(requests[0])
        assert same_bits(model, before)
        assert session.edit(requests[0]).rank_after == 1
    assert len(EditLog.load(tmp_path / "j")) == 1


def test_what_a_session_of_one_form_does_not_do(tiny, options, requests):
    model, tok = tiny
    with pytest.raises(InvalidArgumentError, match="second_moment has no part in form='gate'"):
        Session(model, tok, form="gate", second_moment="identity", **options)
    with Session(model, tok, form="gate", **options) as session:
        with pytest.raises(InvalidArgumentError, match="open it with form='weight'"):
            session.edit(requests[0], form="weight")
        with pytest.raises(InvalidArgumentError, match="form must be one of"):
            session.edit(requests[0], form="lora")
        session.edit(requests[0])
        del beside(model).units.projection.module._modules["rome_fast_beside"]
        with pytest.raises(SessionError, match="taken away or replaced"):
            session.edit(requests[1])


@FORMS
def test_what_stood_there_before_stays(tiny, options, requests, form):
    """Edits of others are a part of the model that a Session edits."""
    model, tok = tiny
    plain = {name: options[name] for name in ("hparams", "context_templates")}
    earlier = edit(model, tok, requests[3], form=form, **plain)
    before = rows(model)
    with Session(model, tok, form=form, **options) as session:
        session.edit(requests[0])
        assert len(beside(model).offsets) == 2
        with pytest.raises(SessionError, match="open Session"):
            earlier.revert()
        session.undo()
        assert same(rows(model), before)
    earlier.revert()
    assert beside(model) is None


def test_a_session_edits_in_neurons_unless_told_otherwise(gpt2, options, requests):
    model, tok = gpt2
    before = state(model)
    with Session(model, tok, **options) as session:
        assert session.form == "neuron"
        assert session.hparams.v_stop_loss == options["hparams"].v_stop_loss
        assert session.edit(requests[0]).form == "neuron"
        assert all(torch.equal(before[name], tensor) for name, tensor in model.named_parameters())
    with Session(copy.deepcopy(model), tok, second_moment="identity", **options) as session:
        assert (session.form, session.hparams.v_stop_loss) == ("weight", 0.3)


def test_where_no_neuron_can_be_it_edits_the_weight(gpt2, options, settings):
    model, tok = gpt2
    first = settings["hparams"].replace(fact_token="subject_first")
    with Session(model, tok, **{**options, "hparams": first}) as session:
        assert session.form == "weight"
