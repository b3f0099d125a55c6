"""What a check foretells, and that the Session stops by it with all edits in place."""

import copy

import pytest
from helpers import same_bits, state

from rome_fast import HealthCheck, Session
from rome_fast.errors import EditWarning, SessionWarning, UnhealthyError
from rome_fast.session.health import Health
from rome_fast.session.outlook import outlook

TEXTS = ("Marie Curie worked in physics and chemistry.", "A short story about tea.")
LAX = {"max_perplexity": 1e9, "max_spread": 1e9, "min_retention": 0.0, "min_neighbourhood": 0.0}


def check(**more):
    """A check that no edited model fails, but for what is given."""
    return HealthCheck(**{"every": 2, "texts": TEXTS, "prompts": (), **LAX, **more})


def health(n_edits, **figures):
    fields = {"perplexity": 1.0, "kl": 0.0, "retention": 1.0, "neighbourhood": 1.0, "spread": None}
    return Health(n_edits, n_edits, update_norms={}, ranks={}, **{**fields, **figures})


def test_what_edits_do_grows_with_their_number():
    told = outlook(
        health(100, perplexity=1.02, retention=0.96, neighbourhood=0.9, spread=0.1), [], 50
    )
    assert told.n_edits == 150
    assert told.perplexity == pytest.approx(1.02**1.5)
    assert told.retention == pytest.approx(1 - 0.04 * 1.5)
    assert told.neighbourhood == pytest.approx(1 - 0.1 * 1.5 ** (1 / 3))
    assert told.spread == pytest.approx(0.15)


def test_no_further_than_twice_as_many():
    assert outlook(health(8), [], 50).n_edits == 16
    assert outlook(health(0), [], 50) is None


def test_edits_that_will_get_less_than_half_of_what_they_ask_for_are_lost():
    # At twice as many edits 0.9 becomes 0.8, and 0.7 becomes 0.4; 0.3 is in doubt already.
    told = outlook(health(4), [0.9, 0.9, 0.7, 0.3], 50)
    assert told.retention == pytest.approx(0.75)


def test_it_is_read_back_from_a_file():
    made = health(4, outlook=outlook(health(4), [0.7], 50))
    assert Health.from_json(made.to_json()) == made


def test_what_is_foretold_stops_the_session_and_undoes_nothing(gpt2, options, requests, tmp_path):
    (model, tok), (fresh, _) = gpt2, copy.deepcopy(gpt2)
    now = Session(model, tok, **{**options, "health": check()}, form="weight")
    with now as session:
        session.edit_many(requests[:2], progress=False)
        spread = session.health().spread
        session.undo(2)
    limit = 1.9 * spread  # between what is there and what is there at twice as many
    path = tmp_path / "edits.journal"
    watched = {**options, "health": check(max_spread=limit)}
    with Session(model, tok, **watched, form="weight", journal=path) as session:
        session.edit(requests[0])
        with pytest.warns(SessionWarning, match=r"healthy, but after 4 edits: the matrix' output"):
            session.edit(requests[1])
        edited = state(model)
        with pytest.raises(UnhealthyError, match=r"before the model is unwell.*call health\(\)"):
            session.edit(requests[2])
        assert same_bits(model, edited)
        assert [edit.edit_id for edit in session.log.holding()] == [1, 2]
    with Session.resume(path, fresh, tok, second_moment="identity") as session:
        with pytest.raises(UnhealthyError, match="before the model is unwell"):
            session.edit(requests[2])
        assert session.health().outlook.problems
        assert session.edit(requests[2]).edit_id == 3


def test_no_horizon_foretells_nothing(gpt2, options, requests):
    model, tok = gpt2
    watched = {**options, "health": check(horizon=0)}
    with Session(model, tok, **watched, form="weight") as session:
        session.edit_many(requests[:2], progress=False)
        [look] = session.checks
    assert look.outlook is None


def test_the_first_check_comes_early_and_then_at_twice_as_many():
    watched = HealthCheck(every=50)
    looks = [0]
    while looks[-1] < 200:
        looks.append(looks[-1] + watched.gap(looks[-1]))
    assert looks == [0, 10, 20, 40, 80, 130, 180, 230]
    assert HealthCheck(every=3).gap(0) == 3


def test_edits_that_are_not_said_are_noticed_at_once(gpt2, options, requests):
    """Long before the first check is due; the model is as before the first of them."""
    model, tok = gpt2
    before = state(model)
    watched = {**options, "health": check(every=50, min_retention=0.9)}
    hparams = watched.pop("hparams").replace(v_num_grad_steps=1, v_lr=1e-4)
    with Session(model, tok, hparams, **watched, form="weight") as session:
        session.edit(requests[0])
        with pytest.warns(SessionWarning, match=r"0\.0% of the edits still said"):
            with pytest.raises(UnhealthyError, match="edits 1 to 2 were undone"):
                session.edit(requests[1])
    assert same_bits(model, before)


def test_consolidate_comes_before_rollback(gpt2, options, requests, monkeypatch):
    model, tok = gpt2
    watched = {**options, "health": check(on_unhealthy="consolidate")}
    with Session(model, tok, **watched, form="weight") as session:
        asked = []
        monkeypatch.setattr(session._monitor, "_consolidate", lambda: asked.append(True))
        answers = iter([("is ill",), (), (), ("is ill",), ("is ill",)])
        monkeypatch.setattr(HealthCheck, "problems", lambda *_: next(answers))
        session.edit_many(requests[:2], progress=False)
        assert (asked, len(session.checks)) == ([True], 2)
        session.edit(requests[2])
        with pytest.warns(SessionWarning), pytest.raises(UnhealthyError, match="3 to 4 were"):
            session.edit(requests[3])
        assert asked == [True, True]


def test_an_edit_that_pushes_out_an_earlier_one_says_so(gpt2, options, requests):
    """Two names of one thing, as the model reads them: the same key, and other values."""
    model, tok = gpt2
    first = {"prompt": "Marie Curie likes", "subject": "Marie Curie", "target_new": "tea"}
    again = {"prompt": "Marie Curie likes a", "subject": "Curie", "target_new": "river"}
    with Session(model, tok, **options, form="weight") as session:
        session.edit(first)
        with pytest.warns(EditWarning, match="takes much of what edits 1 ask for"):
            result = session.edit(again)
    assert any("takes much" in text for text in result.warnings)
