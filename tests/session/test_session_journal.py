"""What is on the disk after anything: every acknowledged edit, and none half applied."""

import copy
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import SEQUENTIAL, same_bits, state
from tokenizers import Tokenizer

from rome_fast import EditLog, Guard, HealthCheck, RankOneUpdate, Session
from rome_fast.editlog.journal import FIRST_LINE, Record, read_records
from rome_fast.errors import EditLogError, JournalError, SessionWarning
from rome_fast.update.undo import WeightHistory


@pytest.fixture(params=["joint", "sequential"])
def written(request, gpt2, options, requests, tmp_path):
    """(journal, pristine model and tok, edited model) after six edits, an undo and a revert."""
    pristine, (model, tok) = copy.deepcopy(gpt2), gpt2
    path = tmp_path / "edits.journal"
    with Session(
        model, tok, **options, journal=path, form="weight", solve=request.param
    ) as session:
        session.edit_many(requests, progress=False)
        session.undo()
        session.revert(2)
    return path, pristine, model


def test_resume_goes_on_where_it_ended(written, requests):
    path, (model, tok), edited = written
    with Session.resume(path, model, tok, second_moment="identity") as session:
        assert all(
            torch.equal(a, b)
            for a, b in zip(model.state_dict().values(), edited.state_dict().values(), strict=True)
        )
        assert [edit.edit_id for edit in session.log.holding()] == [1, 3, 4, 5]
        retained = session._ledger.retained
        assert retained is None or retained.retained == {1, 3, 4, 5}
        result = session.edit(requests[1])
        assert result.edit_id == 7
    assert [edit.edit_id for edit in EditLog.load(path).holding()] == [1, 3, 4, 5, 7]


def test_another_tokenizer_is_refused(written):
    path, (model, tok), _ = written
    before = state(model)
    rules = json.loads(tok.backend_tokenizer.to_str())
    ids = rules["model"]["vocab"]
    ids["Ġplays"], ids["Ġabout"] = ids["Ġabout"], ids["Ġplays"]
    backend = Tokenizer.from_str(json.dumps(rules))
    other = type(tok)(tokenizer_object=backend, eos_token=tok.eos_token)
    assert len(other) == len(tok)
    with pytest.raises(JournalError, match="begun with another tokenizer than tok"):
        Session.resume(path, model, other)
    assert same_bits(model, before)


def test_ctrl_c_while_a_journal_is_resumed_leaves_the_unedited_model(written, monkeypatch):
    path, (model, tok), edited = written
    before, add = state(model), WeightHistory.add

    def interrupted(*args):
        add(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(WeightHistory, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Session.resume(path, model, tok)
    assert same_bits(model, before)
    with Session.resume(path, model, tok):
        assert same_bits(model, state(edited))


def test_a_resumed_session_edits_as_one_that_never_stopped(gpt2, options, requests, tmp_path):
    (model, tok), (other, _), (third, _) = gpt2, copy.deepcopy(gpt2), copy.deepcopy(gpt2)
    own = {"retain": 0.5, "anchor": 2, "guard": Guard(2.0, "reject"), "stop_loss": 0.4}
    with Session(model, tok, **options, **own, form="weight") as session:
        session.edit_many(requests, progress=False)
    path = tmp_path / "edits.journal"
    with Session(other, tok, **options, **own, journal=path, form="weight") as session:
        session.edit_many(requests[:3], progress=False)
    with Session.resume(path, third, tok, second_moment="identity") as session:
        assert session._sequencer._settings.guard == Guard(2.0, "reject")
        session.edit_many(requests[3:], progress=False)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(third.state_dict()[name], weight, rtol=1e-5, atol=1e-7)


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("way", ["weight", "neuron", "gate", "consolidate"])
def test_killed_at_any_moment(tmp_path, way):
    seed = random.SystemRandom().randrange(2**31)
    program = Path(__file__).parents[1] / "support" / "killed.py"
    command = [sys.executable, str(program), str(tmp_path), "50", str(seed), way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"seed {seed}\n{done.stderr[-3000:]}"
    runs = json.loads(done.stdout)
    assert len(runs) == 50
    assert sum(run["acknowledged"] for run in runs) > 50
    assert sum(run["same"] for run in runs) > 10
    assert sum(run["torn"] for run in runs) > 0


def test_torn_anywhere_the_whole_records_remain(written):
    path, _, _ = written
    data, whole = path.read_bytes(), EditLog.load(path)
    ends = _ends(data)
    chosen = random.Random(0)
    for cut in [*chosen.sample(range(ends[0], len(data)), 60), *ends[:-1]]:
        path.write_bytes(data[:cut])
        log = EditLog.load(path)
        n_records = sum(end <= cut for end in ends) - 1
        assert len(log.edits) == min(n_records, 6)
        for a, b in zip(log.edits, whole.edits, strict=False):
            there, here = a.tensors(), b.tensors()
            assert all(torch.equal(there[name], here[name]) for name in here)
            assert a.request == b.request


def _ends(data):
    """Where each record ends."""
    ends, at = [], data.index(b"\n") + 1
    while at < len(data):
        at += 44 + int.from_bytes(data[at + 4 : at + 12], "little")
        ends.append(at)
    return ends


def test_a_torn_record_is_dropped_and_said(written):
    path, (model, tok), _ = written
    data = path.read_bytes()
    path.write_bytes(data[:-7])
    torn = len(data) - 7 - _ends(data)[-2]
    with pytest.warns(SessionWarning, match=rf"the last record was torn \({torn} bytes\)"):
        session = Session.resume(path, model, tok, second_moment="identity")
    session.close()
    assert path.read_bytes() == data[: _ends(data)[-2]]


def test_a_flipped_bit_in_the_last_record_is_a_torn_one(written):
    path, (model, tok), _ = written
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(bytes(data))
    with pytest.warns(SessionWarning, match="torn"):
        Session.resume(path, model, tok, second_moment="identity").close()


@pytest.mark.parametrize("place", ["payload", "length", "mark"])
def test_damage_in_the_middle_is_no_torn_end(written, place):
    """Dropping what follows would lose edits that were acknowledged."""
    path, (model, tok), _ = written
    data = bytearray(path.read_bytes())
    begin = _ends(data)[2]
    data[begin + {"payload": 500, "length": 7, "mark": 0}[place]] ^= 16
    path.write_bytes(bytes(data))
    before = state(model)
    with pytest.raises(JournalError, match=rf"is damaged at byte {begin}, after 2 records"):
        Session.resume(path, model, tok, second_moment="identity")
    with pytest.raises(EditLogError, match="is damaged at byte"):
        EditLog.load(path)
    assert path.read_bytes() == bytes(data)
    assert same_bits(model, before)


def test_an_existing_journal_is_not_overwritten(written, options):
    path, (model, tok), _ = written
    data = path.read_bytes()
    with pytest.raises(JournalError, match=r"exists already: Session\.resume"):
        Session(model, tok, **options, journal=path, form="weight")
    assert path.read_bytes() == data
    Session(
        model, tok, **options, form="weight"
    ).close()  # neither the weight nor the file is still held
    Session.resume(path, model, tok, second_moment="identity").close()


def test_another_model_is_refused_by_the_weight(written, requests):
    path, (model, tok), edited = written
    name = "transformer.h.1.mlp.c_proj.weight"
    with pytest.raises(EditLogError, match=f"{name} differs .* load the unedited model"):
        Session.resume(path, edited, tok, second_moment="identity")
    with torch.no_grad():
        model.transformer.h[0].attn.c_proj.weight.mul_(1.01)
    before = state(model)
    with pytest.raises(EditLogError, match=r"transformer\.h\.0\.attn\.c_proj\.weight differs"):
        Session.resume(path, model, tok, second_moment="identity")
    assert same_bits(model, before)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no journal"),
        (b"something else\n", "is not a Session's journal"),
        (b"rome_fast.journal.1\n", "has lost its first record"),
    ],
)
def test_what_is_no_journal(gpt2, tmp_path, content, message):
    model, tok = gpt2
    path = tmp_path / "edits.journal"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JournalError, match=message):
        Session.resume(path, model, tok)


def test_looks_at_the_health_are_kept(gpt2, options, requests, tmp_path):
    (model, tok), (other, _) = gpt2, copy.deepcopy(gpt2)
    path = tmp_path / "edits.journal"
    own = {
        **options,
        "health": HealthCheck(
            every=2,
            prompts=("It is",),
            max_perplexity=1e9,
            max_spread=1e9,
            min_retention=0.0,
            min_neighbourhood=0.0,
        ),
    }
    with Session(model, tok, **own, journal=path, form="weight") as session:
        session.edit_many(requests[:5], progress=False)
        checks = session.checks
    assert [check.last_edit for check in checks] == [2, 4]
    with Session.resume(path, other, tok, second_moment="identity") as session:
        assert session.checks == checks
        session.edit(requests[5])
        assert [check.last_edit for check in session.checks] == [2, 4, 6]


def test_a_journal_from_before_edits_were_solved_as_one_goes_on_as_it_began(
    gpt2, options, requests, tmp_path
):
    path, pristine = tmp_path / "edits.journal", copy.deepcopy(gpt2)
    model, tok = gpt2
    with Session(model, tok, **options, **SEQUENTIAL, journal=path) as session:
        session.edit_many(requests[:3], progress=False)
    records, _, _ = read_records(path)
    fields = dict(records[0].fields)
    fields["settings"] = {
        name: value
        for name, value in fields["settings"].items()
        if name not in ("solve", "lam", "form")
    }
    fields["settings"]["health"].pop("max_spread")
    first = Record(fields, records[0].tensors)
    path.write_bytes(FIRST_LINE + b"".join(map(bytes, [first, *records[1:]])))
    with Session.resume(path, *pristine, second_moment="identity") as session:
        assert same_bits(pristine[0], state(model))
        session.edit(requests[3])
        assert isinstance(session.log.edits[3].update, RankOneUpdate)
