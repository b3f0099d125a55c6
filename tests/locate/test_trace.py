"""A Trace as JSON, as text with bars, and as a picture."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

from rome_fast.errors import MissingExtraError
from rome_fast.locate import Trace


@pytest.fixture
def trace():
    scores = torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.5, 0.9], [0.0, 0.2, 1.0]], dtype=torch.float64)
    return Trace(
        prompt="in [red] $x$ costs",
        subject="$x$",
        tokens=("in [red]", " $x$", " costs"),
        subject_range=(1, 2),
        answer=" $y$",
        high=0.9,
        low=0.1,
        scores={"hidden": scores, "mlp": scores.T.contiguous()},
        settings={"window": 2, "seed": 0},
    )


def test_json_holds_everything(trace, tmp_path):
    trace.save(tmp_path / "trace.json")
    read = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    assert read == trace.to_dict()
    assert set(read) == {
        "prompt", "subject", "tokens", "subject_range", "answer", "high", "low", "scores",
        "settings",
    }  # fmt: skip
    assert read["scores"]["hidden"][1] == [0.1, 0.5, 0.9]
    assert read["subject_range"] == [1, 2]


def test_text_has_a_bar_for_each_state(trace):
    text = str(trace)
    assert "'in [red] $x$ costs' -> ' $y$': p = 0.900" in text
    assert "noise on the subject (*) 0.100" in text
    rows = [line for line in text.splitlines() if " at " in line]
    assert [row.split()[-3:] for row in rows[1:3]] == [["0.900", "at", "2"], ["1.000", "at", "2"]]
    assert " $x$*" in rows[1] and " ▄█" in rows[1]  # none, half and all of 0.8
    assert " ▁█" in rows[2]  # below low, an eighth, above high
    assert "MLPs, window of 2" in text


@pytest.mark.parametrize(("width", "bars"), [(60, 24), (80, 48), (120, 48)])
def test_no_number_is_cut_at_any_width(trace, width, bars):
    """Forty-eight layers; where there is no room for a bar each, two share the highest."""
    scores = trace.scores["hidden"].repeat(1, 16)
    scores[2, 47] = 2.0
    trace = dataclasses.replace(
        trace, scores={"mlp": scores}, tokens=("in [red]", " $x$", " a token that is long")
    )
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(trace)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    [row] = [line for line in lines if "2.000 at 47" in line]
    assert row.startswith(" a token th…  ") and row[15 : 15 + bars].endswith("█")
    assert row[15 + bars :].strip() == "2.000 at 47"
    assert ("2 a bar" in console.file.getvalue()) == (bars == 24)


def test_peak_is_the_first_of_the_highest(trace):
    assert trace.peak("hidden") == (2, 2)
    assert trace.peak("mlp") == (2, 2)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_picture(trace, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"trace{suffix}"
    trace.plot(path)
    first = path.read_bytes()
    if suffix == ".svg":
        assert ElementTree.fromstring(first).tag.endswith("svg")
    else:
        assert first.startswith(b"\x89PNG")


def test_without_matplotlib_the_remedy_is_named(trace, tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rome-fast\[plot\]'"):
        trace.plot(tmp_path / "trace.png")
    assert not list(tmp_path.iterdir())


def test_a_strongest_state_elsewhere_is_said(trace):
    """The answer's own place does not count for hidden states: there it is put together."""
    [text] = trace.remarks()
    assert text.startswith("MLPs, window of 2: the strongest is ' costs' in layer 2, not at the")
    assert text in " ".join(str(trace).split())
    scores = {"hidden": trace.scores["hidden"]}
    assert dataclasses.replace(trace, scores=scores).remarks() == []
    before = torch.zeros(3, 3, dtype=torch.float64)
    before[0, 1] = 0.8
    [text] = dataclasses.replace(trace, scores={"hidden": before}).remarks()
    assert "'in [red]' in layer 1" in text
