"""Memory: the estimate against what is held, and what is free."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import CONTEXTS, REQUEST
from prepared import prepared, random_edit

import rome_fast
from rome_fast.model import memory
from rome_fast.model.memory import free_bytes
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.encode import encode
from rome_fast.value.batch import EditBatch
from rome_fast.value.memory import MemoryEstimate, estimate
from rome_fast.value.suffix_forward import SuffixForward

MIB = 2**20


@pytest.mark.covering
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", ["GPT2", "Llama", "Qwen3", "GPTBigCode", "GPTJ", "Gemma3"])
def test_keys_and_values_are_counted_to_the_byte(family, layer):
    batch = EditBatch.of([random_edit(0, [9, 9, 9, 9], 3)])
    model, projection, first = prepared(family, layer, batch)
    said = estimate(ModelSpec.of(model), projection, batch.edits, rows_at_once=3)
    assert said.attention == sum(x.nbytes for pair in first.attention for x in pair)
    states = sum(x.nbytes for pair in first.attention_below for x in pair)
    whole = estimate(ModelSpec.of(model), projection, batch.edits)
    assert whole.attention == said.attention + states


@pytest.mark.parametrize("family", ["GPT2", "Llama", "Qwen3", "OPT", "GPTJ", "Phi"])
def test_what_gradients_keep_is_counted_nearly(family):
    """Between what autograd saves, the weights left out, and 2.5 times that."""
    batch = EditBatch.of([random_edit(0, [9, 9, 9, 9], 3)])
    model, projection, first = prepared(family, 0, batch)
    suffix = SuffixForward.of(ModelSpec.of(model), projection, batch, first)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(x):
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = x, storage.nbytes()
        return x

    deltas = torch.zeros(1, projection.d_value, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logits = suffix.logits(deltas)
    held = sum(n for pointer, (_, n) in kept.items() if pointer not in weights)
    said = estimate(ModelSpec.of(model), projection, batch.edits)
    assert held / 1.1 <= said.search <= 2.5 * held
    assert said.logits == 4 * logits.nbytes


def test_the_weights_and_c_are_counted(gpt2):
    model, tok = gpt2
    tokens = [encode(tok, rome_fast.EditRequest.parse(REQUEST), CONTEXTS)]

    def said(model, **facts):
        spec = ModelSpec.of(model)
        return estimate(spec, spec.down_projection(1), tokens, **facts)

    whole = said(model)
    assert whole.weight == 256 * 64 * 4 and whole.second_moment == 256**2 * (4 + 8)
    assert said(model, identity=True).second_moment == 0
    above = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in model.transformer.h[0].parameters()
    )
    assert said(model, bfloat16_copies=True).weight == whole.weight + 2 * above
    half = said(model.half())
    assert half.weight == 256 * 64 * (2 + 4)
    assert half.search == whole.search // 2 and half.logits == whole.logits


def test_total_is_the_larger_of_two_peaks_and_is_readable():
    parts = MemoryEstimate(1, 30, 4, 7, 2, 3)
    assert parts.activations == 4 + 7
    assert replace(parts, search=9).activations == 4 + 9 + 3
    assert parts.total == 1 + 30 + 20  # the factor's making
    assert replace(parts, second_moment=3).total == 1 + 3 + 11
    text = str(MemoryEstimate(2 * MIB, 3 * 2**30, 5000, 0, 7 * MIB, MIB))
    assert text == (
        "5.0 GiB (weight 2 MiB, second moment 3.0 GiB, attention 5 KiB, first pass 0 KiB, "
        "search 7 MiB, logits 1 MiB)"
    )


def test_free_is_the_least_of_what_limits(tmp_path, monkeypatch):
    if free_bytes(torch.device("cpu")) is None:
        pytest.skip("this system does not tell")
    for name, folder in (("_PROC", "proc"), ("_GROUP", "group")):
        (tmp_path / folder).mkdir()
        monkeypatch.setattr(memory, name, tmp_path / folder)
    assert free_bytes(torch.device("cpu")) is None
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8000 kB\n")
    assert free_bytes(torch.device("cpu")) == 8000 * 1024
    (tmp_path / "group/memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) == 8000 * 1024
    (tmp_path / "group/memory.max").write_text("5000\n")
    (tmp_path / "group/memory.current").write_text("4000\n")
    (tmp_path / "group/memory.stat").write_text("anon 1000\nfile 3000\n")
    assert free_bytes(torch.device("cpu")) == 5000 - 4000 + 3000
    (tmp_path / "group/memory.current").write_text("9000\n")
    assert free_bytes(torch.device("cpu")) == 0
    assert free_bytes(torch.device("meta")) is None
