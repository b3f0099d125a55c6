"""The factor of C + weight * sum of k k^T, against float64 on fresh random data."""

import pytest
import torch
from helpers import SEQUENTIAL, state

from rome_fast import RankOneUpdate, SecondMoment, Session
from rome_fast.errors import SecondMomentError
from rome_fast.model.spec import DownProjection
from rome_fast.session.retention import RetainedMoment
from rome_fast.update.solve import Constraint, apply_update_
from rome_fast.update.undo import WeightHistory

D_KEY, D_VALUE = 24, 10


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    return lambda *shape: torch.randn(*shape, generator=generator)


@pytest.fixture
def projection(draw):
    module = torch.nn.Linear(D_KEY, D_VALUE, bias=False).requires_grad_(False)
    module.weight.copy_(draw(D_VALUE, D_KEY))
    return DownProjection("down", module, 0, "out_in")


@pytest.fixture(params=["moment", "identity"])
def base(request, draw):
    if request.param == "identity":
        return None
    moment = SecondMoment(D_KEY)
    moment.add(draw(200, D_KEY))
    return moment


def dense(base):
    eye = torch.eye(D_KEY, dtype=torch.float64)
    return eye if base is None else base.moment().double()


def keys_of(draw, n):
    return {number: draw(2, D_KEY) for number in range(1, n + 1)}


@pytest.mark.covering
@pytest.mark.parametrize("weight", [1e-3, 1.0, 1e4])
def test_solves_with_the_keys_in_it(draw, projection, base, backend, weight):
    retained, keys = RetainedMoment(base, weight, projection, backend), keys_of(draw, 5)
    retained.retain(keys)
    matrix = dense(base) + weight * sum(k.double().T @ k.double() for k in keys.values())
    asked = draw(3, D_KEY)
    torch.testing.assert_close(
        retained.solve(asked), torch.linalg.solve(matrix, asked.double().T).T
    )
    white = retained.whiten(asked)
    torch.testing.assert_close(white @ white.T, asked.double() @ retained.solve(asked).T)
    assert retained.retained == {1, 2, 3, 4, 5}


@pytest.mark.covering
def test_taking_keys_out_is_as_if_they_had_never_been_in(draw, projection, base, backend):
    keys, asked = keys_of(draw, 6), draw(D_KEY)
    changed = RetainedMoment(base, 10.0, projection, backend)
    changed.retain(keys)
    fewer = {number: keys[number] for number in (1, 4)}
    changed.retain(fewer)
    expected = RetainedMoment(base, 10.0, projection, backend)
    expected.retain(fewer)
    torch.testing.assert_close(changed.solve(asked), expected.solve(asked))
    changed.retain({})
    torch.testing.assert_close(
        changed.solve(asked), torch.linalg.solve(dense(base), asked.double())
    )


def test_a_downdate_that_rounding_forbids_makes_the_factor_anew(draw, projection, base):
    keys, asked = keys_of(draw, 3), draw(D_KEY)
    retained = RetainedMoment(base, 1e17, projection, "auto")
    retained.retain(keys)
    retained.retain({})
    torch.testing.assert_close(
        retained.solve(asked), torch.linalg.solve(dense(base), asked.double())
    )


def test_a_key_that_is_not_finite_is_refused(draw, projection, base):
    retained, keys = RetainedMoment(base, 1.0, projection, "auto"), keys_of(draw, 2)
    retained.retain({1: keys[1]})
    before = retained.factor().clone()
    with pytest.raises(SecondMomentError, match="the keys of edit 2 cannot be retained"):
        retained.retain({**keys, 2: torch.stack([keys[2][0], torch.full((D_KEY,), torch.inf)])})
    torch.testing.assert_close(retained.factor(), before)
    assert retained.retained == {1}


def test_near_keys_are_found_whatever_their_length(draw, projection, base):
    retained, keys = RetainedMoment(base, 1.0, projection, "auto"), keys_of(draw, 4)
    retained.retain(keys)
    assert retained.near(-3 * keys[2][0] + 1e-3 * draw(D_KEY)) == {2}
    assert retained.near(draw(D_KEY)) == set()


@pytest.mark.covering
def test_with_a_large_weight_earlier_edits_are_kept_exactly(draw, projection, base, backend):
    """And with none they are not, which is what retention is for."""
    for weight, kept in ((1e10, True), (0.0, False)):
        history = WeightHistory(projection, backend)
        retained = RetainedMoment(base, weight, projection, backend)
        keys = draw(8, D_KEY)
        for number, key in enumerate(keys, 1):
            constraint = Constraint(key[None], key[None], draw(D_VALUE))
            apply_update_(history, constraint, retained)
            retained.retain({n: keys[n - 1][None] for n in range(1, number + 1)})
            if number == 1:
                first = projection.weight @ keys[0]
        now = projection.weight @ keys[0]
        close = torch.allclose(now, first, rtol=1e-3, atol=1e-3)
        assert close is kept
        assert len(history) == 8


@pytest.mark.covering
def test_an_update_is_the_same_as_solving_with_the_sum(draw, projection, base, backend):
    retained, keys = RetainedMoment(base, 2.0, projection, backend), keys_of(draw, 3)
    retained.retain(keys)
    key, residual = draw(D_KEY), draw(D_VALUE)
    update = apply_update_(
        WeightHistory(projection, backend), Constraint(key[None], key[None], residual), retained
    )
    assert isinstance(update, RankOneUpdate)
    matrix = dense(base) + 2.0 * sum(k.double().T @ k.double() for k in keys.values())
    solved = torch.linalg.solve(matrix, key.double())
    expected = torch.outer(residual.double(), solved) / (key.double() @ solved)
    torch.testing.assert_close(update.dense(), expected.float(), rtol=1e-4, atol=1e-5)


def test_a_session_retains_what_holds_and_no_more(gpt2, options, requests):
    model, tok = gpt2
    with Session(model, tok, **options, retain=1.0, **SEQUENTIAL) as session:
        retained = session._ledger.retained
        for request in requests[:4]:
            session.edit(request)
        assert retained.retained == {1, 2, 3, 4}
        session.undo(2)
        assert retained.retained == {1, 2}
        session.redo()
        assert retained.retained == {1, 2, 3}
        session.revert(1)
        assert retained.retained == {2, 3}
        session.edit({**requests[1], "target_new": "capital"})
        assert retained.retained == {3, 5}


def test_an_edit_of_nearly_the_same_key_releases_the_earlier_one(gpt2, options):
    """The subject's last token, and what it attends to, are the same: so is the key."""
    model, tok = gpt2
    one = {"prompt": "{} is a", "subject": "Steve Jobs", "target_new": "near"}
    other = {"prompt": "{} was the", "subject": "Steve Jobs", "target_new": "capital"}
    before = state(model)
    contexts = {"context_templates": ["{}"]}
    with Session(model, tok, **{**options, **contexts}, retain=1.0, **SEQUENTIAL) as session:
        session.edit(one)
        result = session.edit(other)
        assert result.replaced == ()
        assert session.log.edits[1].released == (1,)
        assert session._ledger.retained.retained == {2}
        assert len(session.log) == 2
        assert result.relative_norm < 1
        session.undo()
        assert session._ledger.retained.retained == {1}
        session.undo()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


NEAR = [
    {"prompt": "{} is a", "subject": "Steve Jobs", "target_new": "near"},
    {"prompt": "{} was the", "subject": "Steve Jobs", "target_new": "capital"},
    {"prompt": "{} had the", "subject": "Steve Jobs", "target_new": "river"},
]


def test_a_revert_in_a_chain_of_near_keys_retains_the_last_alone(gpt2, options):
    model, tok = gpt2
    with Session(
        model,
        tok,
        **{**options, "context_templates": ["{}"]},
        retain=1.0,
        form="weight",
        solve="sequential",
    ) as session:
        for request in NEAR:
            session.edit(request)
        assert session.log.edits[2].released == (1, 2)
        session.revert(2)
        assert session._ledger.retained.retained == {3}
        session.undo()
        assert session._ledger.retained.retained == {1}


def test_an_edit_of_a_window_releases_its_own_near_keys_only(gpt2, options, requests):
    model, tok = gpt2
    with Session(
        model,
        tok,
        **{**options, "context_templates": ["{}"]},
        retain=1.0,
        form="weight",
        solve="sequential",
    ) as session:
        session.edit(NEAR[0])
        session.edit_many([requests[1], NEAR[1]], order="independent", progress=False)
        assert [edit.numbers["window"] for edit in session.log.edits[1:]] == [2, 2]
        assert [edit.released for edit in session.log.edits[1:]] == [(), (1,)]
        session.undo()
        assert session._ledger.retained.retained == {1, 2}


@pytest.mark.covering
def test_many_keys_at_once_are_factored_once(draw, projection, base, backend, monkeypatch):
    keys, asked = keys_of(draw, 20), draw(D_KEY)
    retained = RetainedMoment(base, 0.5, projection, backend)
    monkeypatch.setattr(RetainedMoment, "_update", None)
    retained.retain(keys)
    kept = {number: keys[number] for number in (2, 5)}
    for now in (keys, kept):
        retained.retain(now)
        matrix = dense(base) + 0.5 * sum(k.double().T @ k.double() for k in now.values())
        torch.testing.assert_close(
            retained.solve(asked), torch.linalg.solve(matrix, asked.double())
        )
        assert retained.retained == now.keys()
        for number in now:
            assert retained.near(keys[number][0]) == {number}
