"""`rome-fast edit --requests`: many edits, the table, and the exit code that stands for all."""

from __future__ import annotations

import json

import pytest
import torch
from cli_helpers import python, refusal
from typer.testing import CliRunner

import rome_fast
from rome_fast import demo
from rome_fast.cli.app import app
from rome_fast.cli.common import BAD_INPUT, EDIT_FAILED
from rome_fast.evaluate import generation

SETTINGS = "layers: [2]\nv_num_grad_steps: {steps}\ncontext_template_length_params: [[5, 4]]\n"


@pytest.fixture(scope="module")
def folder():
    return demo.model_path()


@pytest.fixture(scope="module")
def facts():
    """Three that share no subject and no relation's answer."""
    found = {fact.subject: fact for fact in demo.load_facts()}
    return [found[name] for name in ("Ray Charles", *list(found)[:2])]


def requests_of(facts, path, extra=()):
    items = [{"prompt": f.prompt, "subject": f.subject, "target": f.target_new} for f in facts]
    path.write_text("".join(json.dumps(item) + "\n" for item in [*items, *extra]))
    return path


@pytest.fixture
def arguments(folder, facts, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(SETTINGS.format(steps=20))
    return {
        "--model": folder,
        "--requests": requests_of(facts, tmp_path / "facts.jsonl"),
        "--hparams": settings,
        "--second-moment": "identity",
    }


def words(arguments):
    return [str(x) for pair in arguments.items() for x in pair]


def run(arguments, *flags):
    return CliRunner().invoke(app, ["edit", *words(arguments), *flags], env={"COLUMNS": "200"})


@pytest.mark.parametrize("order", ["exact", "independent"])
def test_all_requests_are_edited_shown_and_saved(arguments, facts, tmp_path, order):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "edited"
    result = run({**arguments, "--save": out, "--order": order, "--window": 2})
    assert result.exit_code == 0, result.output
    assert "3 of 3 edits hold, 0 took and were lost to later ones" in result.output
    model, tok = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    for fact in facts:
        text = fact.prompt.replace("{}", fact.subject)
        assert text in result.output
        ids = tok(text, return_tensors="pt").input_ids
        with torch.no_grad():
            said = tok.decode(model(input_ids=ids).logits[0, -1].argmax())
        assert fact.target_new.startswith(said.strip())


def test_an_edit_that_a_later_one_takes_back_fails_all_and_saves_nothing(
    arguments, facts, tmp_path
):
    ray = facts[0]
    opposite = {"prompt": ray.prompt, "subject": ray.subject, "target": "trumpet"}
    file = requests_of(facts[:1], tmp_path / "both.jsonl", [opposite])
    result = run({**arguments, "--requests": file, "--save": tmp_path / "edited"})
    assert result.exit_code == EDIT_FAILED, result.output
    assert "1 of 2 edits hold, 1 took and were lost to later ones" in result.output
    assert not (tmp_path / "edited").exists()


def test_an_edit_that_runs_on_inside_the_word_does_not_hold(arguments, facts, monkeypatch):
    said = f" {facts[0].target_new}bor"
    monkeypatch.setattr(generation, "generate", lambda *args, **options: [said])
    result = run({**arguments, "--limit": 1})
    assert result.exit_code == EDIT_FAILED
    assert "0 of 1 edits hold" in result.output and said.strip() in result.output


def test_edits_that_do_not_take_exit_1(arguments, tmp_path):
    arguments["--hparams"].write_text(SETTINGS.format(steps=1))
    result = run({**arguments, "--save": tmp_path / "edited"})
    assert result.exit_code == EDIT_FAILED
    assert "0 of 3 edits hold, 0 took" in result.output
    assert not (tmp_path / "edited").exists()


def test_bad_record_stops_before_the_model_is_loaded_or_is_left_out(arguments, facts, tmp_path):
    bad = {"prompt": "Nobody sings", "subject": "Somebody", "target": "songs"}
    file = requests_of(facts[:1], tmp_path / "bad.jsonl", [bad])
    wanted = {**arguments, "--requests": file}
    line = refusal(run({**wanted, "--model": "./absent"}))
    assert "RecordError: bad.jsonl: record 1 (line 2): subject 'Somebody' is not in prompt" in line
    result = run(wanted, "--skip-bad")
    assert result.exit_code == 0, result.output
    assert "RecordWarning: bad.jsonl: left out 1 of 2 records: record 1 (line 2)" in result.stderr


def test_limit_and_format(arguments):
    result = run({**arguments, "--limit": 1, "--format": "flat"})
    assert "1 of 1 edits hold" in result.output
    line = refusal(run({**arguments, "--format": "counterfact"}))
    assert "record 0 (line 1): requested_rewrite must be a dict" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--prompt": "{} sings"}, "--requests takes the place of --prompt, --subject, --target"),
        ({"--requests": "absent.json"}, "--requests: there is no file 'absent.json'"),
        ({"--order": "random"}, "order must be one of"),
        ({"--window": "0"}, "window must be a whole number of 1 or more"),
    ],
)
def test_bad_input_exits_2_with_one_line(arguments, change, message):
    assert message in refusal(run({**arguments, **change}))


def test_nothing_to_edit_is_said(folder):
    result = CliRunner().invoke(app, ["edit", "--model", str(folder), "--prompt", "{} sings"])
    assert result.exit_code == BAD_INPUT
    assert "give --prompt, --subject and --target, or --requests" in result.stderr


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_can_be_read_at_any_width(arguments, facts, width):
    words = [str(x) for pair in arguments.items() for x in pair]
    result = CliRunner().invoke(app, ["edit", *words], env={"COLUMNS": str(width)})
    lines = result.stdout.splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if "edits" in line)]
    assert max(map(len, table)) <= width
    told = " ".join(" ".join(line[3:].split("0.")[0].split()) for line in table)
    for fact in facts:
        longest = max(fact.subject.split(), key=len)
        assert longest in told.replace("'", " ").split(), "no word of an edit is cut"


@pytest.mark.exhaustive
def test_where_nothing_is_saved_it_is_said_and_how_to_save_the_rest(
    arguments, facts, tmp_path, folder
):
    ray = facts[0]
    never = {"prompt": ray.prompt, "subject": ray.subject, "target": "zzyzx qqxqq wvwvw zkzkz"}
    held = facts[2]
    other = {"prompt": held.prompt, "subject": held.subject, "target": held.target_new}
    file = tmp_path / "both.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in (other, never)))
    out, journal = tmp_path / "edited", tmp_path / "edits.journal"
    asked = {**arguments, "--requests": file, "--save": out}
    result = run(asked)
    assert result.exit_code == EDIT_FAILED and not out.exists(), result.output
    assert "edited was not written: not every target is what the model says" in result.stderr
    assert "--journal FILE keeps the edits" in result.stderr
    result = run({**asked, "--journal": journal})
    assert result.exit_code == EDIT_FAILED and not out.exists(), result.output
    command = next(line for line in result.stderr.splitlines() if "rome-fast apply" in line)
    words = command.partition("rome-fast apply ")[2].split()
    assert words[words.index("--without") + 1] == "2"
    result = CliRunner().invoke(app, ["apply", *words])
    assert result.exit_code == 0 and (out / "model.safetensors").exists(), result.output


def test_an_edit_that_failed_shows_what_the_model_writes(arguments, facts, tmp_path):
    from rome_fast.prompt.greedy import greedy_continuations

    ray = facts[0]
    never = {"prompt": ray.prompt, "subject": ray.subject, "target": "zzyzx qqxqq"}
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps(never))
    settings = tmp_path / "settings.yaml"
    settings.write_text("layers: [2]\nv_num_grad_steps: 1\ncontext_template_length_params: []\n")
    result = run({**arguments, "--requests": file, "--hparams": settings})
    assert result.exit_code == EDIT_FAILED
    model, tok, _ = demo.load()
    hparams = rome_fast.RomeHparams.from_file(settings)
    request = rome_fast.EditRequest(ray.prompt, ray.subject, never["target"])
    with rome_fast.trial(model, tok, request, hparams, second_moment="identity"):
        [said] = greedy_continuations(model, tok, [tok(request.text)["input_ids"]], 8)
    lines = result.stdout.splitlines()
    [head] = [line for line in lines if "model says" in line]
    start = head.index("model says")
    shown = " ".join(line[start:] for line in lines[lines.index(head) + 2 :])
    assert shown.split()[: len(said.split())] == said.split()


@pytest.mark.exhaustive
def test_two_processes_share_the_searches_and_one_speaks(arguments, tmp_path):
    out = tmp_path / "edited"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "rome_fast", "edit", "--order", "independent"]
    result = python(*torchrun, *command, *words({**arguments, "--save": out}))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("3 of 3 edits hold") == 1
    assert (out / "config.json").exists()


@pytest.mark.exhaustive
def test_processes_do_not_share_an_exact_order(arguments):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = python(*torchrun, "-m", "rome_fast", "edit", *words(arguments))
    assert result.returncode != 0
    assert "torchrun shares the searches of --order independent" in result.stderr
