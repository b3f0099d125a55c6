"""`rome-fast evaluate`: the table, the files, refusals before the long work, and torchrun."""

from __future__ import annotations

import json
import sys

import pytest
from cli_helpers import python, refusal
from typer.testing import CliRunner

import rome_fast
from rome_fast import Evaluation, demo
from rome_fast.cli.app import app
from rome_fast.errors import InvalidArgumentError

SETTINGS = "layers: [2]\nv_num_grad_steps: 20\ncontext_template_length_params: [[5, 4]]\n"


@pytest.fixture
def arguments(tmp_path):
    """Two facts of the embedded model."""
    items = [
        {
            "prompt": fact.prompt,
            "subject": fact.subject,
            "target_new": fact.target_new,
            "rephrase_prompt": fact.paraphrase_prompts[0],
        }
        for fact in demo.load_facts()[:300:150]
    ]
    records, settings = tmp_path / "facts.jsonl", tmp_path / "settings.yaml"
    records.write_text("".join(json.dumps(item) + "\n" for item in items))
    settings.write_text(SETTINGS)
    return {
        "--records": records,
        "--hparams": settings,
        "--second-moment": "identity",
        "--generate-tokens": 3,
    }


def words(arguments):
    return [str(x) for pair in arguments.items() for x in pair]


def run(arguments, *flags):
    return CliRunner().invoke(app, ["evaluate", *words(arguments), *flags], env={"COLUMNS": "80"})


def test_stress_is_asked_for_and_what_does_not_fit_is_said(arguments, tmp_path):
    (tmp_path / "settings.yaml").write_text(SETTINGS.replace("steps: 20", "steps: 1"))
    result = run(arguments, "--stress")
    assert result.exit_code == 0, result.output
    assert "stress_prefix_50" in result.output and "stress_negated" in result.output
    assert "warning: stress_prefix_200 was not asked of 2 of 2 cases" in result.output


@pytest.mark.parametrize("mode", ["single", "sequential"])
def test_table_json_and_page_tell_the_same(arguments, tmp_path, mode):
    texts = tmp_path / "texts.txt"
    texts.write_text("He plays the piano.\n\nShe lives in Paris.\n", encoding="utf-8")
    out, html = tmp_path / "report.json", tmp_path / "report.html"
    more = {"--mode": mode, "--held-texts": texts, "--out": out, "--html": html}
    result = run({**arguments, **more})
    assert result.exit_code == 0, result.output
    found = Evaluation.load(out)
    assert (found.setting["mode"], found.setting["held_texts"]["n"]) == (mode, 2)
    assert len(found.cases) == 2 and bool(found.retention) == (mode == "sequential")
    after = f"{100 * found.metrics['after']['rewrite_prob'].mean:.1f} ±"
    assert after in result.output and after in html.read_text(encoding="utf-8")
    said = found.cases[0].stages["after"].generations[0].strip()
    assert said and said in html.read_text(encoding="utf-8")


def test_capability_is_asked_for_by_names_with_commas(arguments, monkeypatch):
    def evaluate(*given, capability, capability_limit, **more):
        raise InvalidArgumentError(f"{capability} {capability_limit}")

    asked = {**arguments, "--capability": "arc_easy,own/task.yaml"}
    assert "in single mode each record is edited alone" in refusal(run(asked))
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    line = refusal(run({**asked, "--mode": "sequential"}))
    assert "pip install 'rome-fast[capability]'" in line
    monkeypatch.setattr(rome_fast, "evaluate", evaluate)
    line = refusal(run({**asked, "--capability-limit": 50}))
    assert "['arc_easy', 'own/task.yaml'] 50" in line


def test_resumes_without_asking_again(arguments, tmp_path):
    journal, out = tmp_path / "journal.jsonl", tmp_path / "report.json"
    first = run({**arguments, "--resume": journal})
    assert first.exit_code == 0, first.output
    kept = journal.read_bytes()
    again = run({**arguments, "--resume": journal, "--out": out})
    assert again.exit_code == 0, again.output
    assert journal.read_bytes() == kept and len(Evaluation.load(out).cases) == 2


def test_bad_records_stop_it_or_are_left_out(arguments, tmp_path):
    with arguments["--records"].open("a") as file:
        file.write('{"prompt": "x"}\n')
    assert "record 2" in refusal(run(arguments))
    out = tmp_path / "report.json"
    for limit, n_cases in ((3, 2), (1, 1)):
        result = run({**arguments, "--out": out, "--limit": limit}, "--skip-bad")
        assert result.exit_code == 0, result.output
        assert len(Evaluation.load(out).cases) == n_cases


@pytest.mark.parametrize(
    ("option", "name", "reason"),
    [
        ("--out", "report.txt", "must end in .json"),
        ("--html", "report.json", "must end in .html"),
        ("--out", "absent/report.json", "there is no folder"),
        ("--html", "folder.html", "is a folder"),
        ("--held-texts", "absent.txt", "cannot be read"),
        ("--records", "absent.json", "there is no file"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_model_is_read(
    arguments, tmp_path, monkeypatch, option, name, reason
):
    def no_model(_):
        raise AssertionError("the long work has begun")

    monkeypatch.setattr("rome_fast.cli.evaluate.load_model_or_demo", no_model)
    (tmp_path / "folder.html").mkdir()
    line = refusal(run({**arguments, option: tmp_path / name}))
    assert option in line and reason in line


def test_figures_of_readings_without_a_model(arguments, tmp_path, monkeypatch):
    readings, out = tmp_path / "readings.jsonl", tmp_path / "again.json"
    asked = {
        **arguments,
        "--protocol": "wild",
        "--readings": readings,
        "--out": tmp_path / "a.json",
    }
    assert run(asked).exit_code == 0
    expected = Evaluation.load(tmp_path / "a.json").metrics
    monkeypatch.setattr("rome_fast.cli.evaluate.load_model_or_demo", None)
    result = run({"--from-readings": readings, "--out": out, "--html": tmp_path / "again.html"})
    assert result.exit_code == 0, result.output
    for stage, metrics in Evaluation.load(out).metrics.items():
        assert metrics == {n: x for n, x in expected[stage].items() if n.startswith("wild_")}
    assert "wild_rewrite" in result.output
    assert "wild_rewrite" in (tmp_path / "again.html").read_text("utf-8")
    lines = readings.read_text("utf-8").replace('"right": false', '"right": true')
    readings.write_text(lines, "utf-8")
    table = {"--from-readings": readings, "--out": tmp_path / "table.md"}
    assert "verdicts changed by hand" in " ".join(run(table).output.split())
    assert "| `wild_rewrite` | 100.0 ± 0.0 | 100.0" in (tmp_path / "table.md").read_text("utf-8")
    readings.write_text(lines + "{\n", "utf-8")
    assert "readings.jsonl: line 10 is not JSON" in refusal(run(table))


@pytest.mark.parametrize(
    ("option", "value"),
    [("--records", "a.json"), ("--mode", "single"), ("--protocol", "wild"), ("--model", "x"),
     ("--readings", "more.jsonl"), ("--limit", 3)],
)  # fmt: skip
def test_options_of_a_run_have_no_use_beside_readings(tmp_path, option, value):
    value = tmp_path / value if option == "--readings" else value
    line = refusal(run({"--from-readings": tmp_path / "readings.jsonl", option: value}))
    assert f"--from-readings asks no model, so {option} has no use beside it" in line


def test_there_must_be_something_to_evaluate():
    assert "give --records FILE, or --from-readings FILE" in refusal(run({}))


@pytest.mark.exhaustive
def test_two_processes_share_the_records_and_one_speaks(arguments, tmp_path):
    out = tmp_path / "report.json"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "rome_fast", "evaluate", *words({**arguments, "--out": out})]
    result = python(*torchrun, *command)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("saved:") == result.stdout.count("worst cases") == 1
    found = Evaluation.load(out)
    assert found.setting["processes"] == 2
    assert [case.index for case in found.cases] == [0, 1]


@pytest.mark.covering
@pytest.mark.parametrize("mode", ["single", "sequential"])
@pytest.mark.parametrize("kept", [True, False])
def test_an_interruption_says_what_is_kept(arguments, tmp_path, monkeypatch, mode, kept):
    from rome_fast.editor import Editor

    name = "propose" if mode == "single" else "edit"
    plain, calls = getattr(Editor, name), []

    def until_the_second(editor, *given, **more):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(editor, *given, **more)

    monkeypatch.setattr(Editor, name, until_the_second)
    path = tmp_path / "cases.jsonl"
    more = {"--resume": path} if kept else {}
    result = run({**arguments, "--mode": mode, "--window": 1, **more})
    assert result.exit_code == 130
    said = (
        f"1 finished cases are in {path}, and the same command goes on"
        if kept
        else "no case is kept: --resume FILE keeps each finished one"
    )
    assert said in " ".join(result.stderr.split())
    if kept:
        monkeypatch.undo()
        assert run({**arguments, "--mode": mode, "--window": 1, **more}).exit_code == 0
