"""The second moment of a journal: kept beside it, or known again when it is given."""

import copy

import pytest
import torch
from helpers import same_bits, state

from rome_fast import SecondMoment, Session
from rome_fast.errors import JournalError
from rome_fast.moment.collect import resolve
from rome_fast.moment.collect.collection import ENOUGH_KEYS_OF_A_SEQUENCE


def moment_of(seed, n_keys=600):
    moment = SecondMoment(256, source=f"seed {seed}")
    moment.add(torch.randn(n_keys, 256, generator=torch.Generator().manual_seed(seed)))
    return moment


@pytest.fixture
def collected(monkeypatch):
    """Each call gives other keys, as a version of the package with another text would."""
    seeds = []

    def collect(spec, tok, projection, dtype, keys_per_dim):
        assert keys_per_dim == ENOUGH_KEYS_OF_A_SEQUENCE
        seeds.append(len(seeds))
        return moment_of(seeds[-1])

    monkeypatch.setattr(resolve, "ordinary_second_moment", collect)
    return seeds


def begun(gpt2, options, requests, path, moment):
    """A journal with one edit; returns the edited model."""
    model, tok = copy.deepcopy(gpt2)
    with Session(
        model, tok, **{**options, "second_moment": moment}, journal=path, form="weight"
    ) as session:
        session.edit(requests[0])
    return model


def test_the_default_moment_is_kept_with_the_journal(gpt2, options, requests, tmp_path, collected):
    path, (model, tok) = tmp_path / "edits.journal", gpt2
    edited = begun(gpt2, options, requests, path, None)
    with Session.resume(path, model, tok) as session:
        assert same_bits(model, state(edited))
        moment = session._editor.second_moment
        assert torch.equal(moment.exact_sum().tril(), moment_of(0).exact_sum().tril())
        assert moment.source == "file edits.journal.moment.safetensors (seed 0)"
        session.edit(requests[1])
    assert collected == [0]


def test_a_lost_moment_is_told(gpt2, options, requests, tmp_path, collected):
    path, (model, tok) = tmp_path / "edits.journal", gpt2
    begun(gpt2, options, requests, path, None)
    beside = tmp_path / "edits.journal.moment.safetensors"
    beside.rename(tmp_path / "elsewhere")
    with pytest.raises(JournalError, match=f"has lost its second moment '{beside.name}'"):
        Session.resume(path, model, tok)
    (tmp_path / "elsewhere").rename(beside)
    Session.resume(path, model, tok).close()


def test_a_moment_of_texts_is_kept_with_the_journal(gpt2, options, requests, tmp_path):
    path, (model, tok) = tmp_path / "edits.journal", gpt2
    texts = ["We drink tea with Ada Lovelace near the old tower of the capital. " * 4] * 60
    begun(gpt2, {**options, "retain": 0}, [requests[0]], path, iter(texts))
    Session.resume(path, model, tok).close()


def test_a_given_moment_is_known_again_but_for_rounding(gpt2, options, requests, tmp_path):
    path, tok = tmp_path / "edits.journal", gpt2[1]
    begun(gpt2, options, requests, path, moment_of(0))
    assert [file.name for file in tmp_path.glob("*.safetensors")] == []
    model = copy.deepcopy(gpt2[0])
    with pytest.raises(JournalError, match=r"second_moment of yours \(seed 0\): give that one"):
        Session.resume(path, model, tok)
    again = moment_of(0)
    again.moment_sum *= 1 + 1e-5
    Session.resume(path, model, tok, second_moment=again).close()


def test_another_moment_is_refused(gpt2, options, requests, tmp_path):
    path, (model, tok) = tmp_path / "edits.journal", gpt2
    begun(gpt2, options, requests, path, moment_of(0))
    damped = moment_of(0)
    damped.damping = 0.1
    before = state(model)
    for other in (moment_of(1), damped, "identity"):
        with pytest.raises(JournalError, match=r"another second_moment \(seed 0\)"):
            Session.resume(path, model, tok, second_moment=other)
        assert same_bits(model, before)


def test_the_identity_is_known_without_being_given(gpt2, options, requests, tmp_path, collected):
    path, (model, tok) = tmp_path / "edits.journal", gpt2
    begun(gpt2, options, requests, path, "identity")
    with Session.resume(path, model, tok) as session:
        assert session._editor.second_moment is None
    assert collected == []
