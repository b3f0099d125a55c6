"""The log as data: which edits hold, files, merging, and writing it into a model."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers import same_bits, state
from logged import NAME, REQUESTS, edited

from rome_fast import EditLog, HealthCheck, Session, ops
from rome_fast.errors import EditLogError, NonFiniteError, RevertError, SessionError


@pytest.mark.covering
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_saved_loaded_and_applied_gives_the_same_bits(tiny, settings, tmp_path, dtype):
    model, tok = tiny
    model.to(dtype)
    before = state(model)
    log, other = edited(model, tok, settings)
    log.edits[2] = replace(log.edits[2], released=(1, 2))
    log.save(tmp_path / "edits.safetensors")
    loaded = EditLog.load(tmp_path / "edits.safetensors")
    assert loaded.base == log.base
    for a, b in zip(loaded.edits, log.edits, strict=True):
        for name in (
            "edit_id",
            "request",
            "weight_name",
            "replaced",
            "released",
            "numbers",
            "time",
        ):
            assert getattr(a, name) == getattr(b, name)
    applied = loaded.apply(model)
    assert same_bits(model, other.state_dict())
    applied.revert()
    assert same_bits(model, before)


@pytest.mark.parametrize(("solve", "floats"), [("joint", 2 * 256 + 64), ("sequential", 256 + 64)])
def test_an_edit_takes_about_its_vectors(gpt2, settings, tmp_path, solve, floats):
    model, tok = gpt2
    log, _ = edited(model, tok, settings, solve=solve)
    sizes = []
    for copies in (1, 101):
        long = log.copy()
        long.edits = log.edits[:1] * copies
        long.save(tmp_path / "edits.safetensors")
        sizes.append((tmp_path / "edits.safetensors").stat().st_size)
    assert (sizes[1] - sizes[0]) / 100 < floats * 4 + 1500


def test_a_reverted_edit_is_a_log_without_it(gpt2, settings):
    model, tok = gpt2
    log, _ = edited(model, tok, settings)
    log.revert(2)
    assert [edit.edit_id for edit in log.holding()] == [1, 3]
    assert "taken out" in log.show()
    other = copy.deepcopy(model)
    log.apply(model)
    log.edits, log.taken_out = [log.edits[0], log.edits[2]], set()
    log.apply(other)
    assert same_bits(model, other.state_dict())
    with pytest.raises(EditLogError, match="edit_id 9 is not in the log: it has 1 to 3"):
        log.revert(9)
    log.revert(3)
    with pytest.raises(EditLogError, match="edit_id 3 has already been taken out"):
        log.revert(3)


def test_what_a_replaced_edit_replaced_stays_away(gpt2, settings):
    """1 <- 2 <- 3 are of one fact: without 2, 3 still holds and 1 does not."""
    model, tok = gpt2
    again = [{**REQUESTS[0], "target_new": target} for target in ("capital", "near", "capital")]
    log, _ = edited(model, tok, settings, again)
    assert [edit.replaced for edit in log.edits] == [(), (1,), (1, 2)]
    assert [edit.edit_id for edit in log.holding()] == [3]
    log.revert(2)
    assert [edit.edit_id for edit in log.holding()] == [3]
    log.revert(3)
    assert [edit.edit_id for edit in log.holding()] == [1]


def test_merging_logs_of_one_model(gpt2, settings):
    model, tok = gpt2
    first, _ = edited(model, tok, settings, REQUESTS[:2])
    second, _ = edited(model, tok, settings, [{**REQUESTS[0], "target_new": "near"}, REQUESTS[2]])
    first.merge(second)
    assert [edit.edit_id for edit in first.edits] == [1, 2, 3, 4]
    assert [edit.edit_id for edit in first.holding()] == [2, 3, 4]
    first.apply(model)
    weight = model.get_parameter(NAME)
    assert len(first.updates(NAME)) == 3
    assert weight.isfinite().all()


def test_merging_logs_of_two_weights(gpt2, settings):
    model, tok = gpt2
    first, one = edited(model, tok, settings, REQUESTS[:1])
    lower = {**settings, "hparams": settings["hparams"].replace(layers=[0])}
    second, two = edited(model, tok, lower, REQUESTS[1:2])
    first.merge(second)
    applied = first.apply(model)
    other = "transformer.h.0.mlp.c_proj.weight"
    assert torch.equal(model.get_parameter(NAME), one.get_parameter(NAME))
    assert torch.equal(model.get_parameter(other), two.get_parameter(other))
    assert len(applied.histories) == 2
    applied.revert()


def two_weights(model, tok, settings):
    """A log of an edit in each of two layers."""
    log, _ = edited(model, tok, settings, REQUESTS[:1])
    lower = {**settings, "hparams": settings["hparams"].replace(layers=[0])}
    log.merge(edited(model, tok, lower, REQUESTS[1:2])[0])
    return log


def test_ctrl_c_while_a_log_is_applied_leaves_no_half_edited_model(gpt2, settings, monkeypatch):
    model, tok = gpt2
    log, before, calls = two_weights(model, tok, settings), state(model), []
    update = ops.rank_one_update_

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        update(*args, **options)

    monkeypatch.setattr(ops, "rank_one_update_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        log.apply(model)
    assert same_bits(model, before)


def test_edits_that_overflow_are_not_applied(gpt2, settings):
    model, tok = gpt2
    log, before = two_weights(model, tok, settings), state(model)
    last = log.edits[-1]
    [update] = log.updates(last.weight_name)
    log.edits[-1] = replace(last, update=replace(update, v=update.v * 1e39))
    with pytest.raises(NonFiniteError, match=r"h\.0\.mlp\.c_proj\.weight overflows torch.float32"):
        log.apply(model)
    assert same_bits(model, before)


def test_a_log_is_not_reverted_while_a_session_edits_the_weight(gpt2, settings):
    model, tok = gpt2
    log, _ = edited(model, tok, settings, REQUESTS[:1])
    before = state(model)
    applied = log.apply(model)
    with Session(model, tok, **settings, health=HealthCheck(every=0), form="weight"):
        with pytest.raises(SessionError, match=f"{NAME} is being edited by an open Session"):
            applied.revert()
    applied.revert()
    assert same_bits(model, before)


def test_merging_logs_of_two_models_is_refused(gpt2, settings):
    model, tok = gpt2
    first, _ = edited(model, tok, settings, REQUESTS[:1])
    for name in (NAME, "transformer.h.0.mlp.c_fc.weight"):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.get_parameter(name).mul_(1.01)
        second, _ = edited(changed, tok, settings, REQUESTS[1:2])
        with pytest.raises(EditLogError, match=f"{name.replace('.', '[.]')} differs"):
            first.merge(second)
        assert len(first.edits) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.get_parameter(NAME).data.mul_(1.0001), f"{NAME} differs from the weight"),
        (
            lambda m: m.transformer.h[3].attn.c_proj.bias.data.add_(0.1),
            r"transformer\.h\.3\.attn\.c_proj\.bias differs: the log was made on another model",
        ),
        (lambda m: m.bfloat16(), "is bfloat16, but the log was made on float32: load the model"),
    ],
)
def test_another_base_is_refused_by_the_weights_name(gpt2, settings, change, message):
    model, tok = gpt2
    log, _ = edited(model, tok, settings)
    change(model)
    before = state(model)
    with pytest.raises(EditLogError, match=message):
        log.apply(model)
    assert same_bits(model, before)


def test_a_model_of_another_family_is_refused(_pristine, settings):
    model, tok = copy.deepcopy(_pristine["gpt2"])
    log, _ = edited(model, tok, settings)
    with pytest.raises(EditLogError, match=f"the model has no {NAME}"):
        log.apply(copy.deepcopy(_pristine["llama"])[0])


def test_applied_twice_is_refused(gpt2, settings):
    model, tok = gpt2
    log, _ = edited(model, tok, settings)
    applied = log.apply(model)
    before = state(model)
    with pytest.raises(EditLogError, match="it may hold this log's edits already"):
        log.apply(model)
    assert same_bits(model, before)
    with torch.no_grad():
        model.get_parameter(NAME)[0, 0] += 1
    with pytest.raises(RevertError, match="was changed after this edit"):
        applied.revert()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no edit log"), (b"", "not an edit log"), (b"x" * 999, "not an edit log")],
)
def test_what_is_no_log(tmp_path, content, message):
    path = tmp_path / "edits.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EditLogError, match=message):
        EditLog.load(path)


def test_a_log_is_not_written_over_a_journal(gpt2, settings, tmp_path):
    model, tok = gpt2
    path = tmp_path / "edits.journal"
    with Session(model, tok, **settings, journal=path, form="weight") as session:
        session.edit(REQUESTS[0])
        with pytest.raises(EditLogError, match=r"edits\.journal' is a Session's journal"):
            session.log.save(path)
        session.edit(REQUESTS[1])
    assert len(EditLog.load(path)) == 2


def test_a_damaged_log_is_told(gpt2, settings, tmp_path):
    model, tok = gpt2
    log, _ = edited(model, tok, settings)
    path = tmp_path / "edits.safetensors"
    log.save(path)
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(EditLogError, match="is damaged: its checksum differs"):
        EditLog.load(path)
    path.write_bytes(bytes(data[:-100]))
    with pytest.raises(EditLogError, match="or it is truncated"):
        EditLog.load(path)


def test_show_tells_what_became_of_each(gpt2, settings):
    model, tok = gpt2
    log, _ = edited(model, tok, settings, [*REQUESTS, {**REQUESTS[0], "target_new": "near"}])
    log.revert(2)
    head, *lines = log.show().splitlines()
    assert head.startswith("2 edits of gpt2")
    assert "4 made, 0 requests refused" in head
    assert "replaced by a later one" in lines[0]
    assert "taken out" in lines[1]
    assert lines[3].startswith("     4  'The founder is Steve Jobs' -> 'near'   p = ")
    assert log.show(last=1).splitlines()[1:] == lines[3:]
    assert log.show(last=0).splitlines() == [head]
