"""Files of second moments: every bit comes back, and nothing damaged does."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from rome_fast.errors import SecondMomentError
from rome_fast.moment import files
from rome_fast.moment.second_moment import SecondMoment


def moment_of(dtype=torch.float64, compensated=False, d=24, n=200):
    moment = SecondMoment(d, dtype=dtype, compensated=compensated, damping="auto", source="a test")
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        moment.add(torch.randn(n, d, generator=generator).to(dtype))
    moment.info = {"module": "x", "tokens": 600}
    return moment


@pytest.mark.parametrize(
    ("dtype", "compensated"),
    [(torch.float32, False), (torch.float32, True), (torch.float64, False)],
)
def test_safetensors_keep_every_bit(tmp_path, dtype, compensated):
    moment = moment_of(dtype, compensated)
    path = tmp_path / "deep" / "c.safetensors"
    moment.save(path)
    again = SecondMoment.load(path)
    assert torch.equal(again.moment_sum.tril(), moment.moment_sum.tril())
    assert torch.equal(again.moment(), moment.moment())
    for name in ("count", "damping", "source", "info"):
        assert getattr(again, name) == getattr(moment, name)
    assert [f.name for f in path.parent.iterdir()] == ["c.safetensors"]
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first


def test_every_truncation_is_a_clear_error(tmp_path):
    path = tmp_path / "c.safetensors"
    moment_of().save(path)
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(SecondMomentError, match=r"c\.safetensors.* or it is truncated"):
            SecondMoment.load(path)


def test_a_flipped_bit_is_a_clear_error(tmp_path):
    path = tmp_path / "c.safetensors"
    moment_of().save(path)
    damaged = bytearray(path.read_bytes())
    damaged[-100] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(SecondMomentError, match="does not match its checksum"):
        SecondMoment.load(path)


def test_a_changed_header_is_a_clear_error(tmp_path):
    path = tmp_path / "c.safetensors"
    moment_of().save(path)
    written = path.read_bytes()
    assert b'count\\": 600' in written
    path.write_bytes(written.replace(b'count\\": 600', b'count\\": 900'))
    with pytest.raises(SecondMomentError, match="does not match its checksum"):
        SecondMoment.load(path)


def test_other_files_are_refused_by_name(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"moment_sum": torch.ones(3)}, path)
    with pytest.raises(SecondMomentError, match="not a second-moment file of rome_fast"):
        SecondMoment.load(path)
    header = json.dumps({"format": "rome_fast.second_moment.999"})
    save_file({"moment_sum": torch.ones(3)}, path, metadata={"second_moment": header})
    with pytest.raises(SecondMomentError, match=r"second_moment\.999"):
        SecondMoment.load(path)
    with pytest.raises(SecondMomentError, match="there is no file"):
        SecondMoment.load(tmp_path)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    moment_of().save(path)
    before = path.read_bytes()

    def fails(*args):
        args[1].write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(files, "_write_safetensors", fails)
    with pytest.raises(OSError, match="no space"):
        moment_of().save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["c.safetensors"]


def test_files_can_be_read_by_those_that_the_umask_allows(tmp_path):
    moment_of().save(tmp_path / "c.safetensors")
    (tmp_path / "plain").touch()
    mode = (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "c.safetensors").stat().st_mode == mode


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    import safetensors.torch

    def full(*args, **kwargs):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"c\.safetensors cannot be written: .*No space left"):
        moment_of().save(tmp_path / "c.safetensors")
    assert os.listdir(tmp_path) == []


def test_pack_and_unpack():
    square = torch.arange(25.0).reshape(5, 5)
    packed = files.pack(square)
    assert packed.tolist() == [0, 5, 6, 10, 11, 12, 15, 16, 17, 18, 20, 21, 22, 23, 24]
    target = torch.full((5, 5), -1.0)
    files.unpack_(target, packed)
    assert torch.equal(target.tril(), square.tril())
    assert (target.triu(1) == torch.full((5, 5), -1.0).triu(1)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reference_npz_round_trips(tmp_path, dtype):
    """The layout of algorithm.md A6: a sum, a count, and the number of articles."""
    keys = np.random.default_rng(0).normal(size=(100, 8)).astype(dtype)
    path = tmp_path / "transformer.h.17.mlp.c_proj_float32_mom2_100000.npz"
    arrays = {
        "mom2.constructor": np.array("util.runningstats.SecondMoment()"),
        "mom2.count": np.array(100),
        "mom2.mom2": keys.T @ keys,
        "sample_size": np.array(100000),
    }
    np.savez(path, **arrays)
    moment = SecondMoment.load(path)
    assert moment.count == 100 and moment.info["sample_size"] == 100000
    assert moment.info["module"] == "transformer.h.17.mlp.c_proj"
    moment.save(tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as again:
        assert set(again) == set(arrays)
        for name, value in arrays.items():
            assert again[name].dtype == value.dtype
            assert np.array_equal(again[name], value)
    moment.save(tmp_path / "ours.safetensors")
    ours = SecondMoment.load(tmp_path / "ours.safetensors")
    assert torch.equal(ours.moment(), moment.moment()) and ours.info == moment.info


def test_npz_without_a_sample_size(tmp_path):
    path = tmp_path / "c.npz"
    np.savez(path, **{"mom2.count": 3, "mom2.mom2": np.eye(2), "sample_size": np.nan})
    moment = SecondMoment.load(path)
    with pytest.raises(SecondMomentError, match="--sample-size"):
        moment.save(tmp_path / "d.npz")
    assert os.listdir(tmp_path) == ["c.npz"]


def test_damaged_npz_is_a_clear_error(tmp_path):
    path = tmp_path / "c.npz"
    np.savez(path, **{"mom2.count": 3, "mom2.mom2": np.ones((64, 64)), "sample_size": 1})
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(SecondMomentError, match=r"c\.npz.*\.npz layout"):
            SecondMoment.load(path)
    np.savez(path, **{"mom2.count": 3, "mom2.mom2": np.ones((2, 3)), "sample_size": 1})
    with pytest.raises(SecondMomentError, match=r"shape \(2, 3\)"):
        SecondMoment.load(path)
    np.savez(path, **{"mom2.count": -3, "mom2.mom2": np.eye(2), "sample_size": 1})
    with pytest.raises(SecondMomentError, match="count is -3"):
        SecondMoment.load(path)
    np.savez(path, other=1)
    with pytest.raises(SecondMomentError, match="layout"):
        SecondMoment.load(path)


def test_an_empty_moment_is_not_saved(tmp_path):
    with pytest.raises(SecondMomentError, match="empty"):
        SecondMoment(4).save(tmp_path / "c.safetensors")
