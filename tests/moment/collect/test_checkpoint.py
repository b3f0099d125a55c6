"""Interruption at any batch, and resumption to the same bits (kill -9: tests/cli)."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from rome_fast.errors import SecondMomentError
from rome_fast.moment.collect import checkpoint as checkpoints
from rome_fast.moment.collect import collection
from rome_fast.moment.collect.collector import collect_second_moment

OPTIONS = {"layers": [0, 2], "max_length": 16, "compensated": True, "progress": False}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Texts read one by one, four rows a batch, and a checkpoint after each."""
    monkeypatch.setattr("rome_fast.moment.collect.corpus._CHUNK", 1)
    monkeypatch.setitem(collection._TOKENS_AT_ONCE, "cpu", 64)
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)


@pytest.fixture
def many(texts):
    generator = torch.Generator().manual_seed(0)
    return texts + [torch.randint(1, 300, (30,), generator=generator) for _ in range(40)]


def same(first, second):
    return all(
        torch.equal(first[layer].moment_sum, second[layer].moment_sum)
        and torch.equal(first[layer].compensation, second[layer].compensation)
        and (first[layer].count, first[layer].info, first[layer].source)
        == (second[layer].count, second[layer].info, second[layer].source)
        for layer in (0, 2)
    )


def stop_after(texts, n):
    """The texts, with an end like a killed process' in their midst."""
    for i, text in enumerate(texts):
        if i == n:
            raise SystemExit("killed")
        yield text


@pytest.mark.covering
@pytest.mark.parametrize("tokens", ["auto", 1300, 10**6])
@pytest.mark.parametrize("n", [0, 3, 20, 30])
def test_resumed_is_the_same_bits(gpt2, many, tmp_path, tokens, n):
    """Ended by a budget, at the end of a row or in its midst, and by the texts."""
    model, tok = gpt2
    whole = collect_second_moment(model, tok, many, tokens=tokens, **OPTIONS)
    options = {**OPTIONS, "tokens": tokens, "checkpoint": tmp_path / "c", "resume": True}
    with pytest.raises(SystemExit):
        collect_second_moment(model, tok, stop_after(many, n), **options)
    assert (tmp_path / "c").exists() == (n > 3)
    # Half-way again, then to the end.
    with pytest.raises(SystemExit):
        collect_second_moment(model, tok, stop_after(many, n + 4), **options)
    assert same(whole, collect_second_moment(model, tok, many, **options))
    # A finished one, taken up once more, is the same still.
    assert same(whole, collect_second_moment(model, tok, many, **options))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_batch_finish_and_a_checkpoint_be_written(
    gpt2, many, tmp_path, monkeypatch, number
):
    model, tok = gpt2
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 1e9)
    whole = collect_second_moment(model, tok, many, tokens=900, **OPTIONS)
    passes = []

    def press(module, args):
        passes.append(1)
        if len(passes) == 6:
            os.kill(os.getpid(), number)

    handle = model.transformer.h[0].register_forward_pre_hook(press)
    options = {**OPTIONS, "tokens": 900, "checkpoint": tmp_path / "c"}
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        collect_second_moment(model, tok, many, **options)
    assert signal.getsignal(number) is before
    handle.remove()
    with pytest.raises(SecondMomentError, match=r"exists: pass resume=True to go on"):
        collect_second_moment(model, tok, many, **options)
    assert same(whole, collect_second_moment(model, tok, many, resume=True, **options))


def test_batch_size_after_lack_of_memory_is_resumed_too(gpt2, many, tmp_path, monkeypatch):
    """Smaller batches round differently: the resumed run must go on with them."""
    model, tok = gpt2
    attention = model.transformer.h[0].attn
    forward, short = attention.forward, []

    def forgetful(*args, **kwargs):
        if len(args[0]) > 2 and not short:
            short.append(1)
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(attention, "forward", forgetful)
    whole = collect_second_moment(model, tok, many, tokens=900, **OPTIONS)
    short.clear()
    options = {**OPTIONS, "tokens": 900, "checkpoint": tmp_path / "c", "resume": True}
    with pytest.raises(SystemExit):
        collect_second_moment(model, tok, stop_after(many, 30), **options)
    assert short and (tmp_path / "c").exists()
    assert same(whole, collect_second_moment(model, tok, many, **options))


def test_other_texts_settings_or_models_are_refused(gpt2, many, tmp_path):
    model, tok = gpt2
    options = {**OPTIONS, "tokens": 900, "checkpoint": tmp_path / "c", "resume": True}
    with pytest.raises(SystemExit):
        collect_second_moment(model, tok, stop_after(many, 20), **{**options, "max_length": 8})
    kept = (tmp_path / "c").read_bytes()
    with pytest.raises(SecondMomentError, match="max_length was 8, now it is 16"):
        collect_second_moment(model, tok, many, **options)
    options["max_length"] = 8
    with pytest.raises(SecondMomentError, match="is of other texts"):
        collect_second_moment(model, tok, many[1:], **options)
    with pytest.raises(SecondMomentError, match="is of other texts"):
        collect_second_moment(model, tok, many[:3], **options)
    with pytest.raises(SecondMomentError, match=r"layers was \[0, 2\], now it is \[0, 1\]"):
        collect_second_moment(model, tok, many, **{**options, "layers": [0, 1]})
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(2)
    with pytest.raises(SecondMomentError, match="weights of layer 0 was"):
        collect_second_moment(model, tok, many, **options)
    assert (tmp_path / "c").read_bytes() == kept
    (tmp_path / "c").write_bytes(kept[:-9])
    with pytest.raises(SecondMomentError, match=r"cannot be read .*delete it to start again"):
        collect_second_moment(model, tok, many, **options)
