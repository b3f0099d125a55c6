"""GGUF files: loaded as they are, from the cache the second time, and refused in one line."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
import torch

from rome_fast.errors import ModelFileError
from rome_fast.model import gguf as module
from rome_fast.model.gguf import load_gguf

pytest.importorskip("gguf", reason="pip install --no-deps gguf accelerate")
pytest.importorskip("accelerate", reason="pip install --no-deps gguf accelerate")
from gguf_files import write_gguf

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    return path


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("quantised", [False, True])
def test_the_model_is_that_of_the_file(cache, tmp_path, quantised):
    expected = write_gguf(tmp_path / "tiny.gguf", quantised=quantised)
    model, tok = load_gguf(tmp_path / "tiny.gguf")
    ids = tok("Ray Charles plays the", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(logits(model, ids), logits(expected, ids), rtol=1e-4, atol=1e-5)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training
    assert tok.decode(ids[0]) == "Ray Charles plays the"
    assert not hasattr(model.config, "quantization_config")


def test_the_second_time_nothing_is_converted(cache, file, monkeypatch):
    first, _ = load_gguf(file)
    monkeypatch.setattr(module, "_write_checkpoint", None)
    again, _ = load_gguf(file)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert len(list(cache.iterdir())) == 1


@pytest.mark.exhaustive
def test_each_dtype_has_its_own_checkpoint(cache, file):
    wide, _ = load_gguf(file)
    half, _ = load_gguf(file, torch.bfloat16)
    assert half.dtype == torch.bfloat16 and len(list(cache.iterdir())) == 2
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(half.state_dict()[name], wide.state_dict()[name].bfloat16())


@pytest.mark.covering(damage=["weights"])
@pytest.mark.parametrize("damage", ["weights", "record", "missing"])
def test_a_damaged_checkpoint_is_made_again(cache, file, damage):
    first, _ = load_gguf(file)
    [folder] = cache.iterdir()
    if damage == "weights":
        blob = bytearray((folder / "model.safetensors").read_bytes())
        blob[-5] ^= 1
        (folder / "model.safetensors").unlink()  # the first model is mapped from it
        (folder / "model.safetensors").write_bytes(blob)
    elif damage == "record":
        (folder / "rome_fast.json").write_text("{")
    else:
        (folder / "config.json").unlink()
    again, _ = load_gguf(file)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_torn_file_is_refused_and_nothing_is_left(cache, file):
    blob = file.read_bytes()
    for length in (3, 40, len(blob) // 2, len(blob) - 100):
        file.write_bytes(blob[:length])
        with pytest.raises(ModelFileError, match=r"tiny\.gguf"):
            load_gguf(file)
    assert not cache.exists() or not list(cache.iterdir())


def test_an_unknown_quantisation_is_refused(cache, file):
    blob = bytearray(file.read_bytes())
    at = blob.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    blob[at : at + 4] = (222).to_bytes(4, "little")
    file.write_bytes(blob)
    with pytest.raises(ModelFileError, match="222"):
        load_gguf(file)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [("bert", r"is an encoder \(bert\)"), ("t5", "encoder"), ("quux", r"\(quux\) cannot be read")],
)
def test_what_is_no_decoder_is_refused(cache, tmp_path, architecture, said):
    write_gguf(tmp_path / "other.gguf", architecture=architecture)
    with pytest.raises(ModelFileError, match=said):
        load_gguf(tmp_path / "other.gguf")
    assert not list(cache.iterdir())


def test_there_must_be_room_for_the_checkpoint(cache, file, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 1000))
    with pytest.raises(ModelFileError, match="set ROME_FAST_CACHE to a larger disk"):
        load_gguf(file)
    assert not list(cache.iterdir())


def test_a_disk_that_fills_up_is_told(cache, file, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_dequantised", full)
    with pytest.raises(ModelFileError, match="No space left"):
        load_gguf(file)
    assert not list(cache.iterdir())


def test_a_cache_that_is_a_file_is_told(monkeypatch, file, tmp_path):
    (tmp_path / "in the way").write_text("")
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path / "in the way"))
    with pytest.raises(ModelFileError, match="set ROME_FAST_CACHE"):
        load_gguf(file)


@pytest.mark.parametrize("name", ["absent.gguf", "text.gguf"])
def test_what_is_no_gguf_file_is_refused(cache, tmp_path, name):
    (tmp_path / "text.gguf").write_text("words")
    with pytest.raises(ModelFileError, match=name):
        load_gguf(tmp_path / name)


def test_interrupted_conversions_leave_nothing(cache, file, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_dequantised", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_gguf(file)
    assert not list(cache.iterdir())
