"""Edits of the weight that are solved as one: no order, no trace, and the closed form."""

import copy

import pytest
import torch
from helpers import same_bits, state

from rome_fast import EditLog, Session
from rome_fast.errors import InvalidArgumentError
from rome_fast.types import JointConstraint

SUBJECT = {"subject": "Ada Lovelace", "target_new": "capital"}


@pytest.fixture(params=["gpt2", "llama"])
def tiny(request):
    return request.getfixturevalue(request.param)


def opened(pair, options, **more):
    return Session(*pair, **options, form="weight", **more)


def after(pair, options, requests, **more):
    """(state, log) of a fresh copy of the model after these edits."""
    model, tok = copy.deepcopy(pair)
    with opened((model, tok), options, **more) as session:
        session.edit_many(requests, progress=False)
        return state(model), session.log


def weight_of(session):
    return next(iter(session.log.base.edited))


@pytest.mark.covering
def test_the_weight_is_the_closed_form_of_the_log(tiny, options, requests):
    model, _ = tiny
    with opened(tiny, options) as session:
        name = weight_of(session)
        before = model.get_parameter(name).detach().double().clone()
        session.edit_many(requests, progress=False)
        asked = [edit.update for edit in session.log.holding()]
    keys, solved, residuals = (
        torch.stack([getattr(c, x).double() for c in asked]) for x in ("key", "solved", "residual")
    )
    gram = keys @ solved.T + asked[0].lam * torch.eye(len(keys), dtype=torch.float64)
    change = residuals.T @ torch.linalg.solve(gram, solved)
    if asked[0].weight_layout == "in_out":
        change = change.T
    moved = model.get_parameter(name).double() - before
    assert (moved - change).norm() < 1e-5 * change.norm()


@pytest.mark.covering
def test_the_order_makes_no_difference(tiny, options, requests):
    forth, log = after(tiny, options, requests)
    back, _ = after(tiny, options, requests[::-1])
    [name] = log.base.edited
    torch.testing.assert_close(forth[name], back[name], rtol=1e-4, atol=1e-6)


@pytest.mark.covering
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_that_is_taken_out_leaves_no_trace(tiny, options, requests, dtype):
    """To the bit, of what was found; what a search finds is rounded by what it ran before."""
    model, tok = tiny
    pair = model.to(dtype), tok
    other, _ = copy.deepcopy(pair)
    never, _ = after(pair, options, requests[:1] + requests[2:])
    with opened(pair, options) as session:
        session.edit_many(requests, progress=False)
        name, whole, log = weight_of(session), state(model), session.log
        log.edits = [edit for edit in log.edits if edit.edit_id != 2]
        log.apply(other)
        session.revert(2)
        assert same_bits(model, state(other))
        close = (
            {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0, "atol": 0.01}
        )
        torch.testing.assert_close(model.get_parameter(name), never[name], **close)
        session.redo()
        assert same_bits(model, whole)


def test_a_fact_that_is_edited_again_is_as_if_edited_once(gpt2, options, requests):
    once, _ = after(gpt2, options, [*requests[1:3], {**requests[0], "target_new": "near"}])
    twice, log = after(gpt2, options, [*requests[:3], {**requests[0], "target_new": "near"}])
    assert [edit.edit_id for edit in log.holding()] == [2, 3, 4]
    [name] = log.base.edited
    torch.testing.assert_close(once[name], twice[name], rtol=1e-4, atol=1e-6)


def test_what_is_found_depends_on_no_other_edit(gpt2, options, requests):
    _, alone = after(gpt2, options, requests[3:4])
    _, last = after(gpt2, options, requests[:4])
    found, again = (log.edits[-1].update for log in (alone, last))
    torch.testing.assert_close(found.residual, again.residual, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.key, again.key)


def test_facts_of_one_subject_have_the_output_of_the_latest(gpt2, options, requests):
    model, _ = gpt2
    first, second = ({"prompt": p, **SUBJECT} for p in ("We drink tea with {}", "They met {}"))
    never, _ = after(gpt2, options, [requests[0], first])
    with opened(gpt2, options) as session:
        session.edit_many([requests[0], first, second], progress=False)
        log, name = session.log, weight_of(session)
        assert log.edits[2].carries == (2,)
        change = sum(u.dense().double().T for u in log.updates(name))  # in_out
        for number in (1, 2):
            moved = change @ log.edits[number].update.key.double()
            wanted = log.edits[2].update.residual.double()
            assert (moved - wanted).norm() < 0.1 * wanted.norm()
        session.undo()
        assert same_bits(model, never)


def test_a_saved_log_is_solved_to_the_same_bits(gpt2, options, requests, tmp_path):
    pristine = copy.deepcopy(gpt2)
    edited, log = after(gpt2, options, requests)
    log.revert(3)
    log.save(tmp_path / "edits.safetensors")
    read, before = EditLog.load(tmp_path / "edits.safetensors"), state(pristine[0])
    assert all(isinstance(edit.update, JointConstraint) for edit in read.edits)
    applied = log.apply(pristine[0])
    without = state(pristine[0])
    applied.revert()
    assert same_bits(pristine[0], before)
    read.apply(pristine[0])
    assert same_bits(pristine[0], without) and not same_bits(pristine[0], edited)


def test_lam_is_of_the_layer_and_is_kept(gpt2, options, requests, tmp_path):
    path, (model, tok) = tmp_path / "edits.journal", copy.deepcopy(gpt2)
    _, log = after(gpt2, options, requests[:2], journal=path)
    lam = log.edits[0].update.lam
    assert lam > 0
    with Session.resume(path, model, tok, second_moment="identity") as session:
        session.edit(requests[2])
        assert session.log.edits[2].update.lam == lam
    _, soft = after(gpt2, options, requests[:2], lam=1e9)
    _, hard = after(gpt2, options, requests[:2], lam=1e-9)
    [name] = log.base.edited
    norms = [float(sum(u.dense() for u in x.updates(name)).norm()) for x in (soft, log, hard)]
    assert norms == sorted(norms) and norms[0] < 1e-3 * norms[2]


@pytest.mark.parametrize("lam", [0, -1.0, float("nan"), float("inf"), "much", True])
def test_lam_must_be_a_number_above_nought(gpt2, options, lam):
    with pytest.raises(InvalidArgumentError, match="lam must be a finite number above 0"):
        opened(gpt2, options, lam=lam)


def test_a_way_to_solve_that_there_is_not_is_refused(gpt2, options):
    with pytest.raises(InvalidArgumentError, match="solve must be one of"):
        opened(gpt2, options, solve="jointly")
