"""Updates out of proportion, and what becomes of them."""

import math

import pytest
import torch
from helpers import SEQUENTIAL, same_bits, state

from rome_fast import EditLog, Guard, Session
from rome_fast.errors import EditRejectedError, EditWarning, InvalidArgumentError, NonFiniteError
from rome_fast.session import RejectedEdit


def test_the_limit_follows_the_running_median():
    guard = Guard(max_growth=2.0)
    assert guard.limit([1.0] * 7) == math.inf
    assert guard.limit([1.0] * 8) == 2.0
    assert guard.limit([1.0] * 40 + [5.0] * 32) == 10.0
    assert guard.limit([1.0, 2.0, 3.0, 100.0] * 4) == 2 * 2.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_growth": 0.5}, "guard.max_growth must be a number of 1 or more, got 0.5"),
        ({"max_growth": math.nan}, "guard.max_growth must be .* 1 or more, got nan"),
        ({"max_growth": "3"}, "guard.max_growth must be a number of 1 or more, got '3'"),
        ({"action": "pray"}, "guard.action must be one of .*, got 'pray'"),
    ],
)
def test_bad_guards_are_named(fields, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Guard(**fields)


@pytest.fixture
def guarded(gpt2, options, requests, monkeypatch):
    """A Session after two edits whose guard allows half of what the third wants."""

    def begin(action):
        model, tok = gpt2
        session = Session(model, tok, **options, guard=Guard(action=action), form="weight")
        for request in requests[:2]:
            session.edit(request)
        wanted = session.edit(requests[2]).update_norm
        session.undo()
        monkeypatch.setattr(Guard, "limit", lambda self, norms: wanted / 2)
        return session, model, wanted

    return begin


def test_the_guard_is_given_the_norms_of_the_edits_that_hold(gpt2_session, requests, monkeypatch):
    session, _ = gpt2_session
    seen = []
    monkeypatch.setattr(Guard, "limit", lambda self, norms: seen.append(list(norms)) or math.inf)
    norms = [session.edit(request).update_norm for request in requests[:3]]
    session.revert(2)
    session.edit(requests[3])
    assert seen == [[], norms[:1], norms[:2], [norms[0], norms[2]]]


def test_shrink(guarded, requests):
    session, model, wanted = guarded("shrink")
    before = state(model)
    with pytest.warns(EditWarning, match=r"was shrunk to 50% \(guard.max_growth\)"):
        result = session.edit(requests[2])
    assert result.update_norm == pytest.approx(wanted / 2, rel=1e-4)
    numbers = session.log.edits[-1].numbers
    assert numbers["asked_norm"] == pytest.approx(wanted)
    assert numbers["limit"] == pytest.approx(wanted / 2)
    assert numbers["update_norm"] == pytest.approx(wanted / 2, rel=1e-4)
    moved = model.transformer.h[1].mlp.c_proj.weight - before["transformer.h.1.mlp.c_proj.weight"]
    torch.testing.assert_close(moved, result.update.dense(), rtol=1e-3, atol=1e-6)
    session.undo()
    assert same_bits(model, before)


@pytest.mark.parametrize("action", ["reject", "stop"])
def test_reject_and_stop_leave_every_bit(guarded, requests, action):
    session, model, wanted = guarded(action)
    before = state(model)
    with pytest.raises(EditRejectedError, match=r"out of proportion .* \(guard.max_growth=3\)"):
        session.edit(requests[2])
    assert same_bits(model, before)
    [rejection] = session.log.rejections
    assert rejection.request.subject == requests[2]["subject"]
    assert f"{wanted:.3g}" in rejection.reason
    assert rejection.numbers["norm"] == pytest.approx(wanted)
    assert rejection.numbers["limit"] == pytest.approx(wanted / 2)
    assert rejection.numbers["denominator"] > 0


def test_a_stream_goes_on_after_reject(guarded, requests):
    session, _, _ = guarded("reject")
    results = session.edit_many(requests[2:4], progress=False)
    assert [type(result) for result in results] == [RejectedEdit] * 2


def test_a_stream_ends_with_stop(guarded, requests):
    session, model, _ = guarded("stop")
    before = state(model)
    with pytest.raises(EditRejectedError):
        session.edit_many(requests[2:4], progress=False)
    assert same_bits(model, before)
    assert len(session.log.rejections) == 1


@pytest.mark.parametrize("action", ["reject", "shrink"])
def test_a_window_is_guarded_request_by_request(guarded, requests, action):
    session, model, wanted = guarded(action)
    before = state(model)
    results = session.edit_many(requests[2:5], order="independent", progress=False)
    if action == "reject":
        assert [type(result) for result in results] == [RejectedEdit] * 3
        assert same_bits(model, before)
    else:
        norms = [result.update_norm for result in results]
        assert all(norm <= wanted / 2 * (1 + 1e-4) for norm in norms)
        assert len(session.log) == 5


def test_a_tiny_denominator_is_rejected_also_by_shrink(
    gpt2, options, requests, monkeypatch, tmp_path
):
    model, tok = gpt2
    monkeypatch.setattr("rome_fast.update.solve.MIN_DENOMINATOR", 1e6)
    before = state(model)
    with Session(model, tok, **options, variant="original", **SEQUENTIAL) as session:
        with pytest.raises(EditRejectedError, match="denominator") as refused:
            session.edit(requests[0])
        assert same_bits(model, before)
        [rejection] = session.log.rejections
        assert rejection.numbers == refused.value.numbers
        assert set(rejection.numbers) == {"norm", "denominator"}
        session.log.save(tmp_path / "edits.safetensors")
        assert EditLog.load(tmp_path / "edits.safetensors").rejections == [rejection]


def test_an_edit_that_is_not_finite_leaves_every_bit(gpt2, options, requests):
    model, tok = gpt2
    with Session(model, tok, **options, **SEQUENTIAL) as session:
        session.edit(requests[0])
        with torch.no_grad():
            model.transformer.h[3].mlp.c_fc.weight[0, 0] = math.inf
        before = state(model)
        with pytest.raises(NonFiniteError):
            session.edit(requests[1])
        assert same_bits(model, before)
        [rejection] = session.log.rejections
        assert rejection.reason.startswith("NonFiniteError")


@pytest.mark.parametrize("order", ["exact", "independent"])
def test_the_denominator_is_in_the_log(gpt2, options, requests, order):
    """What the request's key says of the unit vector: v times it moves the output on that key."""
    model, tok = gpt2
    with Session(model, tok, **options, **SEQUENTIAL) as session:
        session.edit_many(requests[:3], order=order, progress=False)
        for edit in session.log.edits:
            key = session._ledger._keys[edit.edit_id][0].double()
            wanted = pytest.approx(float(key @ edit.update.u.double()), rel=1e-4)
            assert edit.numbers["denominator"] == wanted
