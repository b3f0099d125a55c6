"""What `rome-fast demo` prints: its table first and in any width, and no notices of others."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rome_fast.cli import demo
from rome_fast.cli.app import app
from rome_fast.cli.common import BAD_INPUT, no_notices_of_torchao
from rome_fast.timings import progress_bar

QUESTIONS = [demo.Question("rewrite", "The instrument played by Ray Charles is the", "violin")]
BEFORE, AFTER = [demo.Answer(0.001, "piano")], [demo.Answer(0.946, "violin")]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_table_is_narrow_and_folds_nothing_but_prompts(width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(demo._before_and_after(QUESTIONS, BEFORE, AFTER))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) < 100
    row = next(line for line in lines if line.startswith("rewrite"))
    assert " ".join(row.split()).endswith("piano -> violin violin 0.001 -> 0.946")


def test_the_table_comes_first_and_nothing_else_is_said():
    result = CliRunner().invoke(app, ["demo"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Ray Charles: piano -> violin\n")
    assert not result.stderr


def test_the_real_model_is_shown_by_how_it_goes_on(monkeypatch):
    """The embedded one in its place, which need not be installed: the way it is asked is meant."""
    from rome_fast.demo import load, load_facts

    monkeypatch.setattr(
        "rome_fast.demo.load", lambda name: (*load("toy")[:2], load_facts("smollm2"))
    )
    result = CliRunner().invoke(app, ["demo", "--model", "smollm2"], env={"COLUMNS": "200"})
    assert result.stdout.startswith("The Eiffel Tower: Paris -> Rome\n"), result.output
    title, _, row = result.stdout.splitlines()[2:5]
    assert title.split() == ["prompt", "before", "after", "p(target)"]
    assert row.startswith("rewrite     The Eiffel Tower is located in the city of ")
    assert "Rome 0." in row and "bit-identical to before" in result.stdout


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_of_continuations_folds_where_it_must(width):
    before = [demo.Answer(0.001, "piano", "piano, and he has been playing it since")]
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(demo._continuations(QUESTIONS, before, [demo.Answer(0.946, "violin", "violin.")]))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    row = next(line for line in lines if line.startswith("rewrite"))
    assert row.rstrip().endswith("violin 0.00 -> 0.95")


def test_a_model_that_is_no_demo_is_refused_in_one_line():
    result = CliRunner().invoke(app, ["demo", "--model", "gpt2"])
    assert result.exit_code == BAD_INPUT
    assert "'toy', 'smollm2'" in result.stderr and len(result.stderr.splitlines()) == 1


def test_other_messages_of_the_same_loggers_are_heard(caplog):
    no_notices_of_torchao()
    logger = logging.getLogger("torchao")
    logger.warning("Failed to load _C.so: no such file")
    logger.warning("Something else failed")
    assert [record.getMessage() for record in caplog.records] == ["Something else failed"]


def test_a_bar_is_drawn_in_a_terminal_alone(capsys):
    for _ in progress_bar(range(3), show=True, desc="edits"):
        pass
    assert capsys.readouterr().err == ""
