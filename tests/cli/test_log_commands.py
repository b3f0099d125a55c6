"""`rome-fast edit --journal`, and what log, apply and export make of the journal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from cli_helpers import refusal
from typer.testing import CliRunner

from rome_fast import EditLog, demo
from rome_fast.cli.app import app
from rome_fast.cli.common import EDIT_FAILED

SETTINGS = "layers: [2]\nv_num_grad_steps: 20\ncontext_template_length_params: [[5, 4]]\n"
NAME = "transformer.h.2.mlp.c_proj.weight"


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    if code is not None:
        assert result.exit_code == code, result.output
    return result


def requests_of(path, n):
    found = {fact.subject: fact for fact in demo.load_facts()}
    lines = [
        json.dumps({"prompt": f.prompt, "subject": f.subject, "target": f.target_new})
        for f in list(found.values())[:n]
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With what three edits left: the model saved, and the journal."""
    folder = tmp_path_factory.mktemp("log")
    (folder / "settings.yaml").write_text(SETTINGS)
    requests_of(folder / "facts.jsonl", 3)
    result = run(
        *edit_words(folder), "--hparams", folder / "settings.yaml", "--save", folder / "edited"
    )
    assert "3 of 3 edits hold" in result.output
    return folder


def edit_words(folder):
    return (
        "edit",
        "--model",
        demo.model_path(),
        "--requests",
        folder / "facts.jsonl",
        "--journal",
        folder / "edits.journal",
        "--second-moment",
        "identity",
    )


def weight_in(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).get_parameter(NAME)


def test_log_shows_and_saves(folder, tmp_path):
    out = tmp_path / "edits.safetensors"
    result = run("log", folder / "edits.journal", "--last", 2, "--without", 2, "--save", out)
    assert "2 edits of" in result.output
    assert "3 made, 0 requests refused" in result.output
    assert "taken out" in result.output
    assert [edit.edit_id for edit in EditLog.load(out).holding()] == [1, 3]


def test_apply_makes_the_model_that_edit_saved(folder, tmp_path):
    result = run(
        "apply",
        folder / "edits.journal",
        "--model",
        demo.model_path(),
        "--save",
        tmp_path / "applied",
    )
    assert "with 3 edits" in result.output
    assert torch.equal(weight_in(tmp_path / "applied"), weight_in(folder / "edited"))


def test_apply_on_an_edited_model_is_refused(folder, tmp_path):
    result = run(
        "apply",
        folder / "edits.journal",
        "--model",
        folder / "edited",
        "--save",
        tmp_path / "applied",
        code=None,
    )
    assert f"{NAME} differs from the weight that the log was made on" in refusal(result)
    assert not (tmp_path / "applied").exists()


def test_export_writes_an_adapter(folder, tmp_path):
    result = run("export", folder / "edits.journal", "--lora", tmp_path / "lora", "--without", 1)
    assert "rank 2, exact" in result.output
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == 2


@pytest.mark.exhaustive
def test_the_same_command_again_adds_only_what_is_new(folder, tmp_path):
    for name in ("facts.jsonl", "edits.journal"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    requests_of(tmp_path / "facts.jsonl", 4)
    words = (*edit_words(tmp_path), "--hparams", folder / "settings.yaml")
    result = run(*words)
    assert "holds 3 of them already" in result.output
    assert "4 of 4 edits hold" in result.output
    assert len(EditLog.load(tmp_path / "edits.journal")) == 4
    for kept in (words, edit_words(tmp_path), (*words, "--variant", "both_keys")):
        assert "holds 4 of them already" in run(*kept).output
    again = refusal(run(*words, "--variant", "mean_key", code=None))
    assert "other hyper-parameters (variant is 'both_keys', not 'mean_key'): give" in again
    (tmp_path / "other.yaml").write_text(SETTINGS.replace("20", "19"))
    again = refusal(run(*edit_words(tmp_path), "--hparams", tmp_path / "other.yaml", code=None))
    assert "v_num_grad_steps is 20, not 19" in again


@pytest.mark.exhaustive
def test_a_fact_that_the_file_holds_twice_ends_at_the_last(folder, tmp_path):
    """Also when the command is run again: the first of the two is not missing."""
    requests_of(tmp_path / "facts.jsonl", 2)
    first, second = map(json.loads, (tmp_path / "facts.jsonl").read_text().splitlines())
    lines = [first, second, {**first, "target": second["target"]}]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = (*edit_words(tmp_path), "--hparams", folder / "settings.yaml")
    told = run(*words, code=None).output
    assert "1 requests are left out: the same fact is asked for again" in told
    made = EditLog.load(tmp_path / "edits.journal")
    assert [edit.request.target for edit in made.holding()] == [second["target"]] * 2
    assert "holds 2 of them already" in run(*words, code=None).output
    again = EditLog.load(tmp_path / "edits.journal")
    assert [edit.edit_id for edit in again.edits] == [edit.edit_id for edit in made.edits]


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_command_goes_on(tmp_path):
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    requests_of(tmp_path / "facts.jsonl", 8)
    words = [*edit_words(tmp_path), "--hparams", tmp_path / "settings.yaml"]
    journal = tmp_path / "edits.journal"
    child = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "rome_fast",
            *map(str, words),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 100
    while not (journal.exists() and journal.stat().st_size > 20_000):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    held = len(EditLog.load(journal))
    assert held >= 1
    result = run(*words)
    assert f"holds {held} of them already" in result.output
    assert "8 of 8 edits hold" in result.output


def test_what_is_refused_is_told_and_nothing_is_saved(folder, tmp_path):
    requests_of(tmp_path / "facts.jsonl", 1)
    long = {"prompt": "{} has played the", "subject": "Ray Charles", "target": "violin " * 500}
    with (tmp_path / "facts.jsonl").open("a") as file:
        file.write("\n" + json.dumps(long))
    result = run(
        *edit_words(tmp_path),
        "--hparams",
        folder / "settings.yaml",
        "--save",
        tmp_path / "edited",
        code=EDIT_FAILED,
    )
    assert "REJECTED: 'Ray Charles has played the'" in result.stderr
    assert "1 of 1 edits hold" in result.output
    assert not (tmp_path / "edited").exists()
    shown = run("log", tmp_path / "edits.journal")
    assert "refused: 'Ray Charles has played the'" in shown.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("log", "nowhere"), "there is no edit log 'nowhere'"),
        (("log", "{journal}", "--last", -1), "--last must be 0 or more, got -1"),
        (("log", "{journal}", "--without", "a"), "--without must be numbers with commas"),
        (("export", "{journal}", "--lora", "x", "--without", "9"), "edit_id 9 is not in the log"),
        (("export", "{journal}", "--lora", "x", "--max-rank", 0), "max_rank must be a whole"),
        (
            (
                "edit",
                "--model",
                "x",
                "--prompt",
                "{} is",
                "--subject",
                "a",
                "--target",
                "b",
                "--journal",
                "j",
            ),
            "--journal is for many edits",
        ),
    ],
)
def test_bad_input_in_one_line(folder, words, message):
    words = [str(word).replace("{journal}", str(folder / "edits.journal")) for word in words]
    assert message in refusal(run(*words, code=None))
