"""`rome-fast check` and `compare`: what an edited model answers otherwise, and two evaluations."""

from __future__ import annotations

import json

import pytest
from cli_helpers import refusal
from typer.testing import CliRunner

import rome_fast
from rome_fast import demo
from rome_fast.cli.app import app

SETTINGS = "layers: [2]\nv_num_grad_steps: 20\ncontext_template_length_params: [[5, 4]]\n"


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "120"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One edit as a journal, an adapter and a saved model; a file of prompts."""
    folder = tmp_path_factory.mktemp("check")
    (folder / "settings.yaml").write_text(SETTINGS)
    hparams = rome_fast.RomeHparams.from_file(folder / "settings.yaml")
    model, tok, _ = demo.load()
    journal = folder / "edits.journal"
    with rome_fast.Session(
        model, tok, hparams, second_moment="identity", journal=journal
    ) as session:
        session.edit(rome_fast.EditRequest("{} plays the", "Ray Charles", "violin"))
        session.log.to_lora(folder / "adapter")
    model.save_pretrained(folder / "edited")
    tok.save_pretrained(folder / "edited")
    (folder / "prompts.txt").write_text("Ray Charles plays the\n\nParis is the capital of\n")
    return folder


@pytest.mark.parametrize("what", ["edits.journal", "adapter", "edited"])
def test_what_changed_is_shown_whatever_holds_the_edit(folder, what):
    if what == "adapter":
        pytest.importorskip("peft")
    asked = ("--base", demo.model_path(), "--prompts", folder / "prompts.txt", "--tokens", 1)
    result = run("check", folder / what, *asked)
    assert result.exit_code == 0, result.output
    [row] = [line for line in result.stdout.splitlines() if "Ray Charles" in line]
    assert row.split()[-2:] == ["piano", "violin"]
    assert "1 of 2 are answered otherwise; perplexity of the prompts times " in result.stdout


def test_a_log_has_its_own_prompts(folder):
    result = run("check", folder / "edits.journal", "--base", demo.model_path())
    assert "1 of 1 are answered otherwise" in result.stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["{folder}/edited"], "give --prompts FILE: only a journal or log has its own"),
        (["{folder}/edited", "--prompts", "{folder}/none.txt"], "none.txt cannot be read"),
        (["{folder}/edited", "--prompts", "{folder}/empty.txt"], "empty.txt holds no text"),
        (["{folder}/edits.journal", "--tokens", "0"], "--tokens must be 1 or more, got 0"),
        (["{folder}/absent", "--prompts", "{folder}/prompts.txt"], "there is no such folder"),
    ],
)
def test_what_cannot_be_checked_is_said_in_a_line(folder, words, reason):
    (folder / "empty.txt").write_text("\n")
    words = [word.format(folder=folder) for word in words]
    assert reason in refusal(run("check", *words, "--base", demo.model_path()))


def evaluated(path, steps):
    model, tok, facts = demo.load()
    hparams = rome_fast.RomeHparams.for_model(model).replace(
        v_num_grad_steps=steps, context_template_length_params=()
    )
    records = [fact.record() for fact in facts[:450:150]]
    rome_fast.evaluate(
        *(model, tok, records, "single", hparams),
        second_moment="identity",
        progress=False,
        generate_tokens=0,
    ).save(path)
    return path


def test_two_evaluations_are_compared_case_by_case(tmp_path):
    first, second = evaluated(tmp_path / "a.json", 1), evaluated(tmp_path / "b.json", 20)
    result = run("compare", first, second)
    assert result.exit_code == 0, result.output
    [row] = [line.split() for line in result.stdout.splitlines() if "rewrite_prob" in line]
    means = [
        rome_fast.Evaluation.load(path).metrics["after"]["rewrite_prob"].mean
        for path in (first, second)
    ]
    assert [float(x) for x in row[1:3]] == pytest.approx([100 * m for m in means], abs=0.06)
    assert float(row[3]) == pytest.approx(100 * (means[1] - means[0]), abs=0.06)
    assert row[-1] == "3"
    # Three records have eight ways to exchange sides: nothing is sure.
    assert float(row[6]) >= 0.25 and float(row[7]) == 1
    for name in ("table.md", "table.csv", "table.tex", "table.json"):
        result = run("compare", first, second, "--out", tmp_path / name)
        assert result.exit_code == 0 and f"saved: {tmp_path / name}" in result.stdout
    assert "| `rewrite_prob` |" in (tmp_path / "table.md").read_text("utf-8")
    assert "--out" in refusal(run("compare", first, second, "--out", tmp_path / "table.txt"))


def test_evaluations_of_other_records_are_refused(tmp_path):
    first = evaluated(tmp_path / "a.json", 1)
    fields = json.loads(first.read_text())
    for case in fields["cases"]:
        case["case_id"] = f"other {case['case_id']}"
    (tmp_path / "b.json").write_text(json.dumps(fields))
    assert "no case of the one evaluation is in the other" in refusal(
        run("compare", first, tmp_path / "b.json")
    )
