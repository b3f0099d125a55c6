"""``rome-fast stats merge``, ``show`` and ``convert``."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
from cli_helpers import assert_same_moment, refusal, small_file, stats
from tiny import SENTENCES, tiny_llama

from rome_fast import SecondMoment
from rome_fast.cli import stats as stats_commands
from rome_fast.errors import SecondMomentWarning


@pytest.fixture
def moment_file(tmp_path):
    return small_file(tmp_path / "moment.safetensors")


def test_merge_equals_one_collection(folder, tmp_path):
    """Eight texts fill a row, so that the rows of the halves are those of the whole."""
    _, tok = tiny_llama()
    draw, words, lines = random.Random(1), " ".join(SENTENCES).split(), []
    while len(lines) < 120:
        line = " ".join(draw.choices(words, k=8))
        if len(tok(line).input_ids) == 16:
            lines.append(line)
    parts = {"whole": lines, "first": lines[:80], "second": lines[80:]}
    files = {name: tmp_path / f"{name}.safetensors" for name in (*parts, "merged")}
    for name, part in parts.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(part))
        common = ["--model", folder, "--layers", 1, "--tokens", 10_000, "--out", files[name]]
        assert stats("collect", "--texts", tmp_path / f"{name}.txt", *common).exit_code == 0
    result = stats("merge", files["first"], files["second"], "--out", files["merged"])
    assert result.exit_code == 0, result.output
    merged = SecondMoment.load(files["merged"])
    assert_same_moment(merged, SecondMoment.load(files["whole"]))
    assert merged.count == 120 * 16
    assert "first.txt + 640 keys of second.txt" in result.stdout


def test_merge_refuses_what_does_not_belong_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_file("a.safetensors", module="mlp.1", weights="aa")
    small_file("b.safetensors", module="mlp.2", weights="aa")
    small_file("c.safetensors", module="mlp.1", weights="cc")
    small_file("d.safetensors", diagonal=(1.0, 2.0))
    told = refusal(stats("merge", "a.safetensors", "b.safetensors", "--out", "m.safetensors"))
    assert "a.safetensors and b.safetensors: " in told
    assert "the module differs: mlp.1 and mlp.2" in told
    told = refusal(stats("merge", "a.safetensors", "c.safetensors", "--out", "m.safetensors"))
    assert "the weights below the layer (hash) differs: aa and cc" in told
    told = refusal(stats("merge", "a.safetensors", "d.safetensors", "--out", "m.safetensors"))
    assert "d_key 4 and 2" in told
    told = refusal(stats("merge", "a.safetensors", "a.safetensors", "--out", "a.safetensors"))
    assert "a.safetensors exists" in told
    assert "two files or more" in refusal(stats("merge", "a.safetensors", "--out", "m.npz"))
    told = refusal(stats("merge", "a.safetensors", "./a.safetensors", "--out", "m.safetensors"))
    assert "got a file twice" in told
    small_file("e.safetensors", module="mlp.1", weights="aa")
    told = refusal(stats("merge", "a.safetensors", "e.safetensors", "--out", "m.npz"))
    assert "--sample-size" in told
    assert len(list(tmp_path.iterdir())) == 5


def test_convert_there_and_back(moment_file, tmp_path):
    npz, back = tmp_path / "m.npz", tmp_path / "back.safetensors"
    assert "--sample-size" in refusal(stats("convert", moment_file, npz))
    assert stats("convert", moment_file, npz, "--sample-size", 5).exit_code == 0
    with np.load(npz) as file:
        assert file["sample_size"] == 5
        assert file["mom2.mom2"].diagonal().tolist() == [80, 40, 20, 0]
    assert stats("convert", npz, back).exit_code == 0
    assert_same_moment(SecondMoment.load(back), SecondMoment.load(moment_file))
    assert SecondMoment.load(back).info["sample_size"] == 5
    assert "back.safetensors exists" in refusal(stats("convert", npz, back))
    assert "must end in .safetensors or .npz" in refusal(stats("convert", npz, tmp_path / "m.pt"))
    assert "there is no file" in refusal(
        stats("convert", tmp_path / "absent.npz", tmp_path / "a.npz")
    )


def test_show_computes_the_spectrum(moment_file):
    result = stats("show", moment_file)
    assert result.exit_code == 0, result.output
    rows = (line.strip().partition(" ") for line in result.stdout.splitlines())
    facts = {name: rest for name, _, rest in rows}
    assert facts["keys"].strip() == "10, 2.5 per dimension"
    assert facts["rank"].strip() == "3 of 4 eigenvalues are above rounding"
    assert facts["effective"].startswith("rank  2.3 (")  # 14^2 / (64 + 16 + 4)
    assert facts["condition"].strip() == "infinite"
    assert facts["largest"].strip().startswith("8.00e+00   ━")
    assert facts["smallest"].strip() == "0.00e+00"


def test_show_says_all_that_was_collected_in_80_columns(uninterrupted, tmp_path):
    path = tmp_path / "layer_1.safetensors"
    path.write_bytes(uninterrupted[path.name])
    result = stats("show", path)
    assert result.exit_code == 0, result.output
    info = SecondMoment.load(path).info
    for wanted in (
        "layer_1.safetensors: ", "model.layers.1.mlp.down_proj", "1 of a llama", "texts.txt",
        "auto: ridge", "with the ridge", info["weights"][:8], info["config"][:8],
        info["tokenizer"][:8], "rome_fast 0.", f"{info['tokens']:,}",
    ):  # fmt: skip
        assert wanted in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_show_refuses_what_has_no_spectrum(tmp_path):
    path = small_file(tmp_path / "zero.safetensors", diagonal=(0.0, 0.0))
    assert "is zero or not finite" in refusal(stats("show", path))
    assert "there is no file" in refusal(stats("show", tmp_path / "absent.safetensors"))


def test_a_warning_is_one_line(moment_file, monkeypatch):
    def warn(moment, path):
        warnings.warn("factored\nin float32", SecondMomentWarning, stacklevel=2)

    monkeypatch.setattr(stats_commands, "print_moment", warn)
    result = stats("show", moment_file)
    assert result.exit_code == 0
    assert result.stderr == "rome-fast: SecondMomentWarning: factored in float32\n"
