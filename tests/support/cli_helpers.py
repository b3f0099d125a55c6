"""Running `rome-fast stats`, here and in its own process, and reading its output."""

from __future__ import annotations

import os
import subprocess
import sys

import torch
from typer.testing import CliRunner

from rome_fast import SecondMoment
from rome_fast.cli.app import app
from rome_fast.cli.common import BAD_INPUT


def saved(model_and_tok, path):
    for part in model_and_tok:
        part.save_pretrained(path)
    return path


def small_file(path, diagonal=(8.0, 4.0, 2.0, 0.0), **info):
    moment = SecondMoment.from_moment(torch.diag(torch.tensor(diagonal)), 10)
    moment.info = info
    moment.save(path)
    return path


def stats(*arguments):
    return CliRunner().invoke(app, ["stats", *map(str, arguments)], env={"COLUMNS": "80"})


def python(*arguments):
    """Run Python in its own process, with one thread, so that the bits are those of this one."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def checkpoint_of(out):
    return out.with_name(f".{out.name}.checkpoint")


def refusal(result):
    """The one line that was printed instead of a traceback."""
    assert result.exit_code == BAD_INPUT, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def assert_same_moment(one, other):
    assert one.count == other.count
    a, b = one.moment().double(), other.moment().double()
    assert (a - b).norm() < 1e-6 * b.norm()
