"""Where a filter makes an error of a warning, the edit that it is about has not been made."""

import warnings

import pytest
from helpers import same_bits, state

import rome_fast
from rome_fast import EditLog, HealthCheck, Session
from rome_fast.errors import EditWarning, SessionWarning

UNWELL = {"every": 2, "texts": ["A short story about tea."], "max_perplexity": 0.0}


@pytest.fixture(autouse=True)
def strictly():
    with warnings.catch_warnings():
        warnings.simplefilter("error", EditWarning)
        warnings.simplefilter("error", SessionWarning)
        yield


@pytest.fixture
def quiet():
    """Undo the filter for what must not fail."""

    def run(what):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return what()

    return run


@pytest.mark.parametrize("verb", ["edit", "edit_many", "stream", "independent"])
def test_an_edit_that_replaces_another_is_not_made(gpt2, options, requests, tmp_path, quiet, verb):
    model, tok = gpt2
    again = {**requests[0], "target_new": "near"}
    path = tmp_path / "edits.journal"
    many = [again, requests[1]]
    with Session(model, tok, **options, journal=path, form="weight") as session:
        quiet(lambda: session.edit(requests[0]))
        before = state(model)
        verbs = {
            "edit": lambda: session.edit(again),
            "edit_many": lambda: session.edit_many(many, progress=False),
            "stream": lambda: next(session.stream(many, progress=False)),
            "independent": lambda: session.edit_many(many, order="independent", progress=False),
        }
        with pytest.raises(EditWarning, match="edit 1 was taken out"):
            verbs[verb]()
        assert same_bits(model, before)
        assert [e.edit_id for e in session.log.holding()] == [1]
        assert [e.edit_id for e in EditLog.load(path).holding()] == [1]
        assert quiet(lambda: session.edit(again)).replaced == (1,)


def test_edits_after_which_the_model_is_found_unwell_are_taken_out(gpt2, options, requests, quiet):
    warnings.simplefilter("ignore", EditWarning)
    model, tok = gpt2
    with Session(
        model, tok, **{**options, "health": HealthCheck(**UNWELL)}, form="weight"
    ) as session:
        quiet(lambda: session.edit(requests[0]))
        before = state(model)
        with pytest.raises(SessionWarning, match="UNHEALTHY"):
            session.edit(requests[1])
        assert same_bits(model, before)
        assert [e.edit_id for e in session.log.holding()] == [1]
        assert session.redo() == [2]


@pytest.mark.parametrize("verb", ["edit", "edit_many", "trial"])
def test_the_verbs_undo_what_they_warn_of(gpt2, settings, requests, verb):
    model, tok = gpt2
    settings = {**settings, "hparams": settings["hparams"].replace(v_num_grad_steps=1)}
    before = state(model)
    with pytest.raises(EditWarning):
        if verb == "edit":
            rome_fast.edit(model, tok, requests[1], **settings)
        elif verb == "edit_many":
            rome_fast.edit_many(model, tok, requests[:2], progress=False, **settings)
        else:
            with rome_fast.trial(model, tok, requests[1], **settings):
                pass
    assert same_bits(model, before)
