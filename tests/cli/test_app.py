"""The command line as its users run it: exit codes, one-line errors, saved models that load."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from helpers import REQUEST
from tiny import tiny_gpt2
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from rome_fast.cli import threads
from rome_fast.cli.app import app
from rome_fast.cli.common import BAD_INPUT, EDIT_FAILED

SETTINGS = """
layers: [1]
v_num_grad_steps: {steps}
v_lr: 0.3
v_weight_decay: 0.001
clamp_norm_factor: 12
context_template_length_params: [[5, 2]]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, tok = tiny_gpt2()
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tok.save_pretrained(path)
    return path


@pytest.fixture
def arguments(folder, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(SETTINGS.format(steps=15))
    return {
        "--model": folder,
        "--prompt": REQUEST["prompt"],
        "--subject": REQUEST["subject"],
        "--target": REQUEST["target_new"],
        "--hparams": settings,
        "--second-moment": "identity",
    }


def run(arguments):
    return CliRunner().invoke(app, ["edit", *(str(x) for pair in arguments.items() for x in pair)])


def test_edit_saves_a_model_that_says_the_target(arguments, folder, tmp_path):
    out = tmp_path / "edited"
    result = run({**arguments, "--save": out})
    assert result.exit_code == 0, result.output
    assert "edited: 'The founder is Steve Jobs' -> 'capital'" in result.output
    model, tok = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = tok("The founder is Steve Jobs", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tok.decode(model(input_ids=ids).logits[0, -1].argmax()) == " capital"
    original = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    changed = [n for n, p in model.state_dict().items() if not torch.equal(p, original[n])]
    assert changed == ["transformer.h.1.mlp.c_proj.weight"]


def test_failed_edit_exits_1_and_saves_nothing(arguments, tmp_path):
    arguments["--hparams"].write_text(SETTINGS.format(steps=1))
    result = run({**arguments, "--save": tmp_path / "edited"})
    assert result.exit_code == EDIT_FAILED
    assert "NOT EDITED" in result.output
    assert not (tmp_path / "edited").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--subject": "Bill Gates", "--prompt": "Steve Jobs is"}, "SubjectNotFoundError: subject"),
        ({"--target": ""}, "InvalidRequestError: request target is empty"),
        ({"--variant": "best"}, "HparamsError: hparams.variant must be one of"),
        ({"--hparams": "absent.yaml"}, "HparamsError: hparams: there is no file"),
        ({"--second-moment": "absent"}, "SecondMomentError: second_moment: there is no file"),
        ({"--model": "./absent"}, "rome-fast: "),
    ],
)
def test_bad_input_exits_2_with_one_line(arguments, change, message):
    result = run({**arguments, **change})
    assert result.exit_code == BAD_INPUT
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output


def test_save_refuses_a_folder_in_use(arguments, folder):
    result = run({**arguments, "--save": folder})
    assert result.exit_code == BAD_INPUT
    assert "is not empty" in result.stderr


@pytest.mark.exhaustive
def test_demo_edits_shows_and_undoes():
    result = CliRunner().invoke(app, ["demo"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for wanted in ("Ray Charles plays the", "violin", "bit-identical to before"):
        assert wanted in result.output
    assert result.output.count("paraphrase") == 3
    assert result.output.count("neighbour") == 3


@pytest.mark.exhaustive
def test_info_and_module_entry():
    assert CliRunner().invoke(app, ["info"]).exit_code == 0
    done = subprocess.run(
        [sys.executable, "-m", "rome_fast.info"], capture_output=True, text=True, check=True
    )
    assert "second_moment_update_" in done.stdout


@pytest.mark.parametrize(
    ("running", "asked", "expected"),
    [([5], None, 1), ([2], None, 3), ([1, 1, 9, 1], None, 4), ([1], None, 4), ([9], "4", 4)],
)
def test_busy_cores_are_spared(monkeypatch, tmp_path, running, asked, expected):
    found, looks = [4], itertools.cycle(running)
    load = tmp_path / "loadavg"
    load.touch()

    def next_look(_):
        load.write_text(f"9.00 9.00 9.00 {next(looks)}/300 4711")

    monkeypatch.setattr(torch, "get_num_threads", lambda: found[-1])
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "_LOAD", load)
    monkeypatch.setattr(threads.time, "sleep", next_look)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    said = threads.spare_busy_cores()
    assert found[-1] == expected
    assert ("of 4 threads are used" in said) == (expected < 4)
