"""A checkpoint that cannot be read ends in one line and exit code 2, whatever is broken."""

from __future__ import annotations

import json
import shutil

import pytest
from cli_helpers import saved
from safetensors.torch import load_file, save_file
from tiny import tiny_llama
from typer.testing import CliRunner

from rome_fast.cli.app import app


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(tiny_llama(), tmp_path_factory.mktemp("whole"))


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def cut_header(folder):
    (folder / "model.safetensors").write_bytes(b"\x10\x00")


def config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def lose_a_shard(folder):
    (folder / "model.safetensors").unlink()
    weights = {"lm_head.weight": "model-00002-of-00002.safetensors"}
    index = {"metadata": {"total_size": 1}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def lose_a_weight(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})


DAMAGES = {
    "short weights": cut,
    "short header": cut_header,
    "wrong type": lambda folder: config(folder, num_hidden_layers="two"),
    "wrong size": lambda folder: config(folder, hidden_size=60),
    "unknown architecture": lambda folder: config(folder, model_type="nothing"),
    "config is no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "lost shard": lose_a_shard,
    "lost weight": lose_a_weight,
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "tokenizer is no JSON": lambda folder: (folder / "tokenizer.json").write_text("{"),
    "tokenizer of another kind": lambda folder: (folder / "tokenizer.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint(whole, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    DAMAGES[damage](folder)
    fact = ["--prompt", "{} is", "--subject", "Ada", "--target", "x"]
    result = CliRunner().invoke(app, ["edit", "--model", str(folder), *fact])
    assert result.exit_code == 2, result.output
    assert f"ModelFileError: --model {folder}: " in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.output
