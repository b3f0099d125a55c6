"""`rome-fast bench` as its users run it; what it times is nowhere looked at."""

from __future__ import annotations

import json

import pytest
import torch
from cli_helpers import refusal, saved
from tiny import tiny_gpt2, tiny_second_moment
from typer.testing import CliRunner

from rome_fast import SecondMoment
from rome_fast.bench.whole_model import WholeModel
from rome_fast.cli.app import app

REQUEST = ("--prompt", "The founder is {}", "--subject", "Steve Jobs", "--target", "capital")
SETTINGS = """
layers: [1]
v_num_grad_steps: 3
v_lr: 0.03
v_weight_decay: 0.001
clamp_norm_factor: 12
context_template_length_params: [[5, 2]]
"""


class Deaf(WholeModel):
    """A peer that knows no C."""

    name, c_modes = "deaf", ("C = I",)


@pytest.fixture(autouse=True)
def no_children(monkeypatch):
    monkeypatch.setattr(
        "rome_fast.bench.measure.peaks_in_children", lambda case, peers: [7 for _ in peers]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tiny_gpt2(), tmp_path_factory.mktemp("model"))


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(SETTINGS)
    return path


def bench(*arguments):
    command = ["bench", "--rounds", "1", *map(str, arguments)]
    return CliRunner().invoke(app, command, env={"COLUMNS": "100"})


def test_a_table_and_every_figure(folder, settings, tmp_path):
    out = tmp_path / "bench.json"
    result = bench("--model", folder, "--hparams", settings, *REQUEST, "--out", out)
    assert result.exit_code == 0, result.output
    for part in (
        "GPT2LMHeadModel layer 1, original: 'The founder is Steve Jobs' -> 'capital'",
        "C = I; medians",
        "whole model",
        "floor: ",
        "of rome_fast's median",
    ):
        assert part in result.output
    report = json.loads(out.read_text())
    assert report["hparams"]["v_lr"] == 0.03 and report["hparams"]["variant"] == "original"
    assert report["model"]["d_model"] == 64 and report["n_contexts"] == 3
    assert report["setting"]["torch"] == torch.__version__
    ours, whole = report["results"]
    assert (ours["implementation"], whole["implementation"]) == ("rome_fast", "whole model")
    assert whole["matched"] and whole["steps"] == whole["steps_allowed"] == 3
    assert whole["peak_mib"] == 7 and 0 < whole["floor_fraction"] < 1
    assert str(folder) not in out.read_text()


def test_without_hparams_no_search_stops_early(folder, tmp_path):
    out = tmp_path / "bench.json"
    result = bench("--model", folder, "--steps", 4, *REQUEST, "--out", out)
    assert result.exit_code == 0, result.output
    rows = {row["implementation"]: row for row in json.loads(out.read_text())["results"]}
    by_default = rows.pop("by default")
    assert by_default["steps"] > 4 and not by_default["matched"]
    assert "stopped early" not in result.output
    assert {name: row["steps"] for name, row in rows.items()} == {"rome_fast": 4, "whole model": 4}


def test_a_given_c_and_a_peer_that_knows_none(folder, settings, tmp_path, monkeypatch):
    file, out = tmp_path / "c.safetensors", tmp_path / "bench.json"
    SecondMoment.from_moment(tiny_second_moment(256), 10_000).save(file)
    monkeypatch.setattr("rome_fast.bench.measure.load_peer", lambda spec: Deaf())
    arguments = ("--second-moment", file, "--peer", "deaf=there", "--out", out)
    result = bench("--model", folder, "--hparams", settings, *REQUEST, *arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["results"]
    assert [(row["implementation"], row["c_mode"]) for row in rows] == [
        ("rome_fast", "given C"),
        ("whole model", "given C"),
        ("rome_fast", "C = I"),
        ("deaf", "C = I"),
    ]
    assert all(row["matched"] for row in rows)


def test_the_ridge_of_a_file_is_part_of_c(gpt2):
    from rome_fast.cli.bench import _damped
    from rome_fast.hparams import RomeHparams
    from rome_fast.model.spec import ModelSpec

    moment = SecondMoment.from_moment(tiny_second_moment(256), 10_000, damping=0.5)
    key = torch.linspace(-1, 1, 256, dtype=torch.float64)
    model, tok = gpt2
    damped = _damped(ModelSpec.of(model), tok, RomeHparams(layers=(1,)), moment)
    torch.testing.assert_close(torch.linalg.solve(damped, key), moment.solve(key))


def test_what_cannot_work_is_told_in_one_line(folder, tmp_path):
    model = ("--model", folder)
    assert "go together" in refusal(bench(*model, "--prompt", "The founder is {}"))
    assert "rounds must be 1 or more" in refusal(bench(*model, *REQUEST, "--rounds", 0))
    assert "nobody" in refusal(bench(*model, *REQUEST, "--peer", "nobody=there"))
    assert "there is no folder" in refusal(bench(*model, "--out", tmp_path / "a" / "b.json"))
