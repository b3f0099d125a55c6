"""Neurons saved as an ordinary checkpoint, edits taken in another form, and a log attached."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import CONTEXTS, REQUEST, UNWATCHED, same_bits, state
from transformers import AutoModelForCausalLM

import rome_fast
from rome_fast import EditLog, Session, edit, widened
from rome_fast.errors import EditLogError, InvalidArgumentError, UnsupportedModelError
from rome_fast.types import JointConstraint

IDS = torch.tensor([[5, 9, 11, 3, 8, 14]])


def logits(model, ids=IDS):
    return model(input_ids=ids, use_cache=False).logits.detach()


def prompt_ids(tok):
    return torch.tensor([tok("The founder is Steve Jobs")["input_ids"]])


def test_a_session_is_saved_as_a_plain_checkpoint(tiny, options, requests, tmp_path):
    model, tok = tiny
    own = model.config.to_dict()
    with Session(model, tok, form="neuron", **options) as session:
        session.edit_many(requests, progress=False)
        session.save_pretrained(tmp_path / "saved", multiple=16)
        before = state(model)
        with pytest.raises(InvalidArgumentError, match="multiple must be a whole number"):
            session.save_pretrained(tmp_path / "none", multiple=0)
        assert same_bits(model, before) and not (tmp_path / "none").exists()
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    for ids in (IDS, prompt_ids(tok)):
        torch.testing.assert_close(logits(wide), logits(model), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits(wide, ids), logits(model, ids), rtol=1e-4, atol=1e-4)
    assert model.config.to_dict() == own
    n_own = wide.config.rome_fast["own_units"]
    assert wide.config.rome_fast["edits"] == {"1": 4}
    down = [p for n, p in wide.named_parameters() if "down_proj.weight" in n or "c_proj" in n]
    assert any(n_own + 16 in p.shape for p in down)


def test_a_widened_model_is_edited_again(tiny, options, requests, settings, tmp_path):
    model, tok = tiny
    with Session(model, tok, form="neuron", **options) as session:
        session.edit(requests[0])
        session.save_pretrained(tmp_path, multiple=16)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with Session(wide, tok, form="neuron", **options) as session:
        assert session.edit(requests[1]).rank_after == 1
        again = widened(wide, multiple=16)
    assert again.config.rome_fast == {**wide.config.rome_fast, "edits": {"1": 2}}
    torch.testing.assert_close(logits(again), logits(wide), rtol=1e-4, atol=1e-4)
    assert edit(wide, tok, requests[2], **settings).rank_after == 1


def test_a_gate_is_in_no_checkpoint(tiny, options, requests, tmp_path):
    model, tok = tiny
    with Session(model, tok, form="gate", **options) as session:
        session.edit(requests[0])
        with pytest.raises(UnsupportedModelError, match=r"1 gates stand.*rome_fast\.attach"):
            session.save_pretrained(tmp_path / "saved")
        session.log.save(tmp_path / "log.safetensors")
        edited = logits(model, prompt_ids(tok))
        session.undo()
    assert not (tmp_path / "saved").exists()
    attached = rome_fast.attach(model, tmp_path / "log.safetensors")
    assert torch.equal(logits(model, prompt_ids(tok)), edited)
    attached.revert()
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    with pytest.raises(EditLogError, match="log was made on another model"):
        rome_fast.attach(model, tmp_path / "log.safetensors")


def test_a_widened_model_comes_back_from_gguf(hparams, tmp_path, monkeypatch):
    """As llama.cpp's converter writes it, and as transformers reads it."""
    pytest.importorskip("gguf", reason="pip install --no-deps gguf accelerate")
    pytest.importorskip("accelerate", reason="pip install --no-deps gguf accelerate")
    from gguf_files import write_gguf

    from rome_fast.model.gguf import load_gguf

    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    model, tok = load_gguf(tmp_path / "tiny.gguf")
    request = {"prompt": "Ray Charles plays the", "subject": "Ray Charles", "target_new": "violin"}
    edit(model, tok, request, hparams, form="neuron", context_templates=CONTEXTS)
    wide = widened(model, multiple=32)
    write_gguf(tmp_path / "wide.gguf", model=wide)
    again, _ = load_gguf(tmp_path / "wide.gguf")
    assert again.config.intermediate_size == 128
    ids = tok("Ray Charles plays the", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=1e-3, atol=1e-4)


def test_nothing_beside_nothing_widened(gpt2):
    model, _ = gpt2
    assert same_bits(widened(model), state(model))


@pytest.mark.parametrize("form", ["neuron", "gate"])
def test_a_log_in_another_form_and_back(gpt2, settings, requests, form):
    """The values are the same ones; each form says the targets."""
    (model, tok), (other, _) = gpt2, copy.deepcopy(gpt2)
    before = state(other)
    with Session(model, tok, health=UNWATCHED, **settings) as session:
        session.edit_many(requests[:2], progress=False)
        log = session.log
    there = log.as_form(form, other, tok)
    assert [edit.form for edit in there.edits] == [form, form]
    assert same_bits(other, before)
    again = EditLog(**vars(there)).as_form("weight", other, tok)
    assert [edit.form for edit in again.edits] == ["weight", "weight"]
    for read in (there, again):
        applied = read.apply(other)
        said = logits(other, prompt_ids(tok))[0, -1].argmax()
        assert tok.decode(int(said)).strip() == "capital"
        applied.revert()
    assert same_bits(other, before)
    with pytest.raises(EditLogError, match="differs from the weight"):
        log.as_form(form, model, tok)


def test_generate_runs_what_stands_beside(tiny, hparams):
    model, tok = tiny
    ids = prompt_ids(tok)
    plain = {"hparams": hparams, "context_templates": CONTEXTS}
    result = edit(model, tok, REQUEST, form="neuron", **plain)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(ids, **options, use_cache=True)
    assert torch.equal(cached, model.generate(ids, **options, use_cache=False))
    assert tok.decode(cached[0, ids.shape[1]]).strip() == "capital"
    result.revert()


def test_facts_of_one_subject_become_one_output_of_the_weight(gpt2, options):
    """Beside the weight what they add is summed; solved as one, the latest speaks for both."""
    (model, tok), (other, _) = gpt2, copy.deepcopy(gpt2)
    facts = [
        {"prompt": "Marie Curie likes", "subject": "Marie Curie", "target_new": "tea"},
        {"prompt": "Marie Curie sees the", "subject": "Marie Curie", "target_new": "river"},
    ]
    with Session(model, tok, form="neuron", **options) as session:
        session.edit_many(facts, progress=False)
        log = session.log
    deltas = [edit.update.delta for edit in log.edits]
    made = EditLog(**vars(log.as_form("weight", other, tok))).edits
    assert all(isinstance(edit.update, JointConstraint) and edit.update.lam > 0 for edit in made)
    assert [edit.carries for edit in made] == [(), (1,)]
    torch.testing.assert_close(made[0].update.residual, deltas[0])
    torch.testing.assert_close(made[1].update.residual, deltas[0] + deltas[1])
