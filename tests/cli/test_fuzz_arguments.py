"""Random argument lists: whatever is wrong is told in one line, with a documented exit code."""

from __future__ import annotations

import json
import random

import pytest
from cli_helpers import saved
from tiny import tiny_gpt2
from typer.testing import CliRunner

from rome_fast.cli.app import app

N_QUICK, N_ALL = 40, 300
DOCUMENTED = {0, 1, 2, 130}
SETTINGS = "layers: [1]\nv_num_grad_steps: 1\ncontext_template_length_params: []\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    saved(tiny_gpt2(), folder / "model")
    (folder / "settings.yaml").write_text(SETTINGS)
    rows = [{"prompt": "{} is", "subject": "Ada Lovelace", "target": "near"}]
    (folder / "facts.json").write_text(json.dumps(rows))
    (folder / "facts.csv").write_text("prompt,subject,target\n{} is,Ada,near\n")
    (folder / "texts.txt").write_text("The founder is Steve Jobs.\n" * 20)
    (folder / "broken.json").write_text("{")
    (folder / "empty").mkdir()
    (folder / "binary").write_bytes(bytes(range(256)))
    return folder


def values(folder):
    files = ("model settings.yaml facts.json facts.csv texts.txt broken.json empty binary").split()
    paths = [str(folder / name) for name in (*files, "absent", "absent/deeper", "out.json")]
    return [
        *paths, *paths, "identity", "1", "0", "-1", "nan", "1e9", "x", "", " ", "é", "\ud83d", "{}",
        "{} is", "Ada Lovelace", "near", "auto", "single", "sequential", "exact", "0,1", "1,x",
        "both_keys", "original", "kmeng01/gpt2-xl", "kmeng01/none",
    ]  # fmt: skip


def commands():
    """The options of every command, by its words."""
    import typer

    group = typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        for more, leaf in inner.items() if inner else [("", command)]:
            words = (name, more) if more else (name,)
            options = [option for p in leaf.params for option in (*p.opts, *p.secondary_opts)]
            found[words] = [option for option in options if option.startswith("--")]
    return found


# They take minutes with arguments that are good.
SLOW = {("demo",), ("bench",), ("plan",), ("probe",), ("info",)}


def arguments(draw, folder, known):
    """A command that is good for something, with a few options that may be anything."""
    words = draw.choice([words for words in known if words not in SLOW])
    pool = values(folder)
    made = list(words)
    good = {
        "--model": folder / "model",
        "--hparams": folder / "settings.yaml",
        "--second-moment": "identity",
        "--requests": folder / "facts.json",
        "--records": folder / "facts.json",
        "--texts": folder / "texts.txt",
        "--prompt": "{} is",
        "--subject": "Ada Lovelace",
        "--target": "near",
        "--generate-tokens": 1,
    }
    for option, value in good.items():
        if option in known[words] and draw.random() < 0.7:
            made += [option, str(value)]
    for _ in range(draw.choice((0, 1, 1, 2))):
        made += draw.choice(([draw.choice(known[words] or ["--help"])], [], ["--bogus"]))
        made += [draw.choice(pool)] * draw.choice((0, 1, 1))
    return made


@pytest.mark.parametrize("n", [N_QUICK, pytest.param(N_ALL, marks=pytest.mark.exhaustive)])
def test_whatever_is_wrong_is_told_in_one_line(folder, n, monkeypatch):
    monkeypatch.chdir(folder)
    known, codes = commands(), {}
    for seed in range(n):
        made = arguments(random.Random(seed), folder, known)
        result = CliRunner().invoke(app, made, env={"COLUMNS": "100"})
        assert result.exit_code in DOCUMENTED, (seed, made, result.output, result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit), (seed, made)
        assert "Traceback" not in result.output, (seed, made)
        if result.exit_code == 2:
            lines = [line for line in result.stderr.splitlines() if "Warning: " not in line]
            assert len(lines) == 1 and lines[0].strip(), (seed, made, result.stderr)
        codes[result.exit_code] = codes.get(result.exit_code, 0) + 1
    assert codes[2] > n / 5 and codes.get(0, 0) > 0
