"""How far edits move the output on ordinary text, known from how they are solved."""

import pytest
import torch
from helpers import same_bits, state

from rome_fast import HealthCheck, SecondMoment, Session
from rome_fast.errors import SessionWarning, UnhealthyError

TEXTS = ("Marie Curie worked in physics and chemistry.",)


@pytest.fixture(params=["identity", "moment"])
def moment(request):
    if request.param == "identity":
        return "identity"
    made = SecondMoment(256)
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    made.add(torch.randn(2000, 256, generator=generator))
    return made


def test_it_is_the_mean_over_ordinary_keys(gpt2, options, requests, moment):
    model, tok = gpt2
    settings = {**options, "second_moment": moment, "health": HealthCheck(every=0, texts=TEXTS)}
    with Session(model, tok, **settings, form="weight") as session:
        assert session.health().spread is None
        [name] = session.log.base.edited
        before = model.get_parameter(name).detach().double().T.clone()
        session.edit_many(requests, progress=False)
        change = model.get_parameter(name).double().T - before
        c = torch.eye(256).double()
        if moment != "identity":
            factor = moment.factor().double()
            c = factor @ factor.T
        expected = float((change @ c @ change.T).trace() / (before @ c @ before.T).trace())
        health = session.health()
        assert health.spread == pytest.approx(expected, rel=1e-3)
        assert f"output on text moved by {expected:.1%}" in str(health)
        session.undo(len(requests))
        assert session.health().spread is None


def test_beyond_its_limit_the_model_is_looked_at_at_once(gpt2, options, requests):
    """Long before the next check, and the last good state comes back."""
    check = HealthCheck(
        every=1000, texts=TEXTS, max_spread=1e-6, max_perplexity=1e9, on_unhealthy="rollback"
    )
    model, tok = gpt2
    before = state(model)
    with Session(model, tok, **{**options, "health": check}, form="weight") as session:
        with pytest.warns(SessionWarning), pytest.raises(UnhealthyError, match=r"consolidate\(\)"):
            session.edit(requests[0])
        assert same_bits(model, before)


def test_it_is_said_once(gpt2, options, requests):
    check = HealthCheck(
        every=1000, texts=TEXTS, max_spread=1e-6, max_perplexity=1e9, on_unhealthy="warn"
    )
    model, tok = gpt2
    with Session(model, tok, **{**options, "health": check}, form="weight") as session:
        with pytest.warns(SessionWarning, match="output on ordinary text moved by"):
            session.edit_many(requests[:3], progress=False)
        assert [look.last_edit for look in session.checks] == [1]
