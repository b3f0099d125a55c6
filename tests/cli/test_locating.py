"""`rome-fast locate` and `rome-fast plan` as their users run them."""

from __future__ import annotations

import json
import shlex

import pytest
from cli_helpers import refusal
from typer.testing import CliRunner

from rome_fast import RomeHparams, collect_second_moment, demo
from rome_fast.cli.app import app

TRACED = ["locate", "--prompt", "{} plays the", "--subject", "Ray Charles", "--samples", "3"]


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120"})


@pytest.fixture(scope="module")
def moments(tmp_path_factory):
    """A folder as `stats collect` writes it."""
    model, tok, facts = demo.load()
    texts = [f"{text} {fact.target}." for fact in facts for text in fact.paraphrase_prompts]
    folder = tmp_path_factory.mktemp("moments")
    for layer, moment in collect_second_moment(model, tok, texts, [2, 4], tokens=8192).items():
        moment.save(folder / f"layer_{layer}.safetensors")
    return folder


@pytest.fixture
def requests(tmp_path):
    facts = [fact for fact in demo.load_facts() if fact.relation == "instrument"][:6]
    rows = [
        {"prompt": fact.prompt, "subject": fact.subject, "target_new": fact.target_new}
        for fact in facts
    ]
    path = tmp_path / "requests.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_locate_prints_a_table_and_writes_numbers_and_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    outs = tmp_path / "trace.json", tmp_path / "trace.svg"
    result = run(*TRACED, "--kinds", "mlp", "--window", 1, "--out", outs[0], "--out", outs[1])
    assert result.exit_code == 0, result.output
    assert "'Ray Charles plays the' -> ' piano'" in result.stdout
    assert "MLPs, window of 1" in result.stdout
    read = json.loads(outs[0].read_text(encoding="utf-8"))
    assert list(read["scores"]) == ["mlp"]
    assert read["settings"]["samples"] == 3
    assert "<svg" in outs[1].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "trace.txt"], "--out trace.txt must end in .json or .png"),
        (["--kinds", "mlp,states"], "kinds must be some of"),
        (["--model", "./absent"], "--model ./absent"),
    ],
)
def test_bad_input_of_locate_is_one_line(arguments, message):
    assert message in refusal(run(*TRACED, *arguments))


def test_plan_recommends_and_what_it_says_next_works(requests, moments, tmp_path):
    out, report = tmp_path / "plan.yaml", tmp_path / "plan.json"
    written = ["--out", out, "--report", report, "--layers", "2,4", "--sample", 3]
    result = run("plan", requests, *written, "--second-moment", moments)
    assert result.exit_code == 0, result.output
    read = json.loads(report.read_text(encoding="utf-8"))
    assert [trial["layer"] for trial in read["trials"]] == [2, 4]
    assert read["settings"]["requests"] == 3
    assert RomeHparams.from_file(out).layer == read["layer"] == 2
    line = next(line for line in result.stdout.splitlines() if line.startswith("next: "))
    command = shlex.split(line.removeprefix("next: "))
    assert command[:2] == ["rome-fast", "edit"]
    assert command[-2:] == ["--second-moment", str(moments / "layer_2.safetensors")]
    widened = run(*command[1:])
    assert "6 of 6 edits hold" in widened.output
    assert widened.exit_code == 0


def test_plan_spreads_its_sample_over_the_file(requests):
    from rome_fast.cli.locate import _spread

    assert _spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert _spread(list(range(3)), 10) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.json"], "absent.json"),
        (["REQUESTS", "--sample", 0], "--sample must be at least 1, got 0"),
        (["REQUESTS", "--layers", "a"], "--layers must be numbers"),
        (["REQUESTS", "--layers", "6", "--second-moment", "identity"], "layers 0 to 5"),
        (["REQUESTS", "--second-moment", "file"], "--second-moment file must be 'identity', or a"),
    ],
)
def test_bad_input_of_plan_is_one_line(requests, arguments, message, tmp_path):
    named = [requests if argument == "REQUESTS" else argument for argument in arguments]
    assert message in refusal(run("plan", *named, "--out", tmp_path / "plan.yaml"))
    assert not (tmp_path / "plan.yaml").exists()
