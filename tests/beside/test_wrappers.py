"""What stands beside an MLP under compiled code, adapters, threads and other devices' hooks."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers import CONTEXTS, REQUEST

from rome_fast import edit
from rome_fast.errors import EditWarning

FORMS = pytest.mark.parametrize("form", ["neuron", "gate"])
OTHER = {"prompt": "She wrote to {}", "subject": "Alan Turing", "target_new": "near"}


@pytest.fixture
def plain(hparams):
    return {"hparams": hparams, "context_templates": CONTEXTS}


def ids_of(tok, text="The founder is Steve Jobs"):
    return torch.tensor([tok(text)["input_ids"]])


@pytest.mark.exhaustive
@FORMS
def test_compiled_code_runs_it(gpt2, plain, form):
    model, tok = gpt2
    compiled = torch.compile(model, backend="aot_eager")
    ids = ids_of(tok)
    with torch.no_grad():
        unedited = compiled(input_ids=ids).logits.clone()
        result = edit(model, tok, REQUEST, form=form, **plain)
        expected = model(input_ids=ids).logits
        torch.testing.assert_close(compiled(input_ids=ids).logits, expected)
        second = edit(model, tok, OTHER, form=form, **plain)
        torch.testing.assert_close(compiled(input_ids=ids).logits, model(input_ids=ids).logits)
        second.revert()
        result.revert()
        torch.testing.assert_close(compiled(input_ids=ids).logits, unedited)


@FORMS
def test_an_adapter_around_it(gpt2, plain, form):
    """Put on before the edit; it stays on top."""
    peft = pytest.importorskip("peft")
    model, tok = gpt2
    config = peft.LoraConfig(r=2, target_modules=["c_proj", "c_fc"], fan_in_fan_out=True)
    wrapped = peft.get_peft_model(model, config)
    with pytest.warns(EditWarning, match="PEFT adapter"):
        result = edit(wrapped, tok, REQUEST, form=form, **plain)
    assert result.rank_after == 1
    edited = wrapped(input_ids=ids_of(tok)).logits
    result.revert()
    assert float((wrapped(input_ids=ids_of(tok)).logits - edited).abs().max()) > 1e-2


@FORMS
def test_threads_do_not_mix_what_they_read(tiny, plain, form):
    model, tok = tiny
    edit(model, tok, REQUEST, form=form, **plain)
    texts = ["The founder is Steve Jobs", "She wrote to", "We drink tea with Ada Lovelace now"]
    with torch.no_grad():
        expected = [model(input_ids=ids_of(tok, text)).logits for text in texts]
    wrong = []

    def ask(i):
        with torch.no_grad():
            for _ in range(20):
                if not torch.equal(model(input_ids=ids_of(tok, texts[i])).logits, expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@FORMS
def test_half_precision(llama, plain, form):
    model, tok = llama
    model = model.to(torch.bfloat16)
    result = edit(model, tok, REQUEST, form=form, **plain)
    assert result.rank_after == 1
    assert model(input_ids=ids_of(tok)).logits.dtype == torch.bfloat16


@FORMS
def test_training_moves_no_gradient_into_it(gpt2, plain, form):
    """The model still trains around it."""
    model, tok = gpt2
    edit(model, tok, REQUEST, form=form, **plain)
    ids = ids_of(tok)
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.transformer.wte.weight.grad is not None
