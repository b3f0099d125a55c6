"""What cannot be written is refused before anything is read, loaded or edited."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from rome_fast.cli.app import app

FACT = ("--prompt", "{} plays the", "--subject", "Ada", "--target", "x")
# Neither the model nor the other files are there: an error that names the path came first.
COMMANDS = {
    "edit --save": ("edit", "--model", "absent", *FACT, "--save"),
    "edit --journal": ("edit", "--model", "absent", "--requests", "{records}", "--journal"),
    "edit --profile": ("edit", "--model", "absent", *FACT, "--profile"),
    "apply --save": ("apply", "absent.journal", "--model", "absent", "--save"),
    "export --lora": ("export", "absent.journal", "--lora"),
    "log --save": ("log", "absent.journal", "--save"),
    "plan --out": ("plan", "{records}", "--model", "absent", "--out"),
    "plan --report": ("plan", "{records}", "--model", "absent", "--report"),
    "locate --out": ("locate", "--model", "absent", *FACT[:4], "--out"),
    "evaluate --out": ("evaluate", "--records", "{records}", "--model", "absent", "--out"),
    "evaluate --html": ("evaluate", "--records", "{records}", "--model", "absent", "--html"),
    "evaluate --resume": ("evaluate", "--records", "{records}", "--model", "absent", "--resume"),
    "bench --out": ("bench", "--model", "absent", "--out"),
}
FOLDERS = ("edit --save", "apply --save", "export --lora")
SUFFIX = {"evaluate --html": ".html"}


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.csv"
    path.write_text("prompt,subject,target\n{} plays the,Ada,x\n")
    return path


def refusal(command, records, path):
    words = [word.format(records=records) if "records" in word else word for word in command]
    result = CliRunner().invoke(app, [*words, str(path)])
    assert result.exit_code == 2, result.output
    [line] = result.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize("name", COMMANDS)
def test_a_path_through_a_file_is_refused_first(name, records, tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / f"out{SUFFIX.get(name, '.json')}"
    line = refusal(COMMANDS[name], records, path)
    assert f"{name.split()[1]} {path}" in line


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_for_a_file_and_a_file_for_a_folder(name, records, tmp_path):
    path = tmp_path / f"there{SUFFIX.get(name, '.json')}"
    path.touch() if name in FOLDERS else path.mkdir()
    wanted = "is a file: name a new folder" if name in FOLDERS else "is a folder: name a file"
    assert wanted in refusal(COMMANDS[name], records, path)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_holds_something_is_refused(name, records, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is not empty" in refusal(COMMANDS[name], records, tmp_path / "full")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_on_a_full_or_locked_disk(name, records, tmp_path, monkeypatch):
    def refuse(dir):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    path = tmp_path / f"new{SUFFIX.get(name, '.json')}"
    assert "No space left on device" in refusal(COMMANDS[name], records, path)
    assert not path.exists()
