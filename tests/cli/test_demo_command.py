"""What `rome-fast demo` prints: its table first and in any width, and no notices of others."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rome_fast.cli import demo
from rome_fast.cli.app import app
from rome_fast.cli.common import no_notices_of_torchao
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
