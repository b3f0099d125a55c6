"""`--profile`: a trace that a browser reads, and a refusal before any work."""

from __future__ import annotations

import json

import pytest
from cli_helpers import refusal, saved
from tiny import tiny_gpt2
from typer.testing import CliRunner

from rome_fast.cli.app import app

REQUEST = ("--prompt", "The founder is {}", "--subject", "Steve Jobs", "--target", "capital")
SETTINGS = """
layers: [1]
v_num_grad_steps: 15
v_lr: 0.3
v_weight_decay: 0.001
clamp_norm_factor: 12
context_template_length_params: [[5, 2]]
"""
# Both commands; the bench runs no child processes for their memory.
COMMANDS = (("edit",), ("bench", "--rounds", "1", "--steps", "3"))


@pytest.fixture(autouse=True)
def no_children(monkeypatch):
    monkeypatch.setattr(
        "rome_fast.bench.measure.peaks_in_children", lambda case, peers: [None for _ in peers]
    )


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = saved(tiny_gpt2(), tmp_path_factory.mktemp("model"))
    settings = tmp_path_factory.mktemp("settings") / "settings.yaml"
    settings.write_text(SETTINGS)
    given = ("--model", folder, "--hparams", settings, "--second-moment", "identity")
    return (*REQUEST, *given)


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_trace_of_the_edit(arguments, command, tmp_path):
    path = tmp_path / "trace.json"
    result = run(*command, *arguments, "--profile", path)
    assert result.exit_code == 0, result.output
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert {"aten::addmm", "rome_fast::rank_one_solve_apply_"} <= names


def test_without_it_nothing_is_traced(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.profiler.profile", None)
    assert run("edit", *arguments).exit_code == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_what_cannot_be_written_is_refused_before_the_model_is_read(command, tmp_path):
    def refused(path):
        return refusal(run(*command, *REQUEST, "--model", "./absent", "--profile", path))

    there = tmp_path / "there.json"
    there.write_text("kept")
    assert "FileExistsError: --profile" in refused(there)
    assert there.read_text() == "kept"
    dangling = tmp_path / "link.json"
    dangling.symlink_to(tmp_path / "nowhere")
    assert "exists: name a new file" in refused(dangling)
    assert "there is no folder" in refused(tmp_path / "absent" / "trace.json")
    assert "there is no folder" in refused(there / "trace.json")


def test_an_edit_that_fails_leaves_no_trace(arguments, tmp_path):
    path, settings = tmp_path / "trace.json", tmp_path / "settings.yaml"
    settings.write_text(SETTINGS.replace("[1]", "[9]", 1))
    assert "layer" in refusal(run("edit", *arguments, "--hparams", settings, "--profile", path))
    assert not path.exists()
