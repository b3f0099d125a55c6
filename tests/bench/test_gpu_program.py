"""The program of benchmarks/gpu: its time, its rows, and what must not hide what."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import parts as parts_of_program
from benchmarks.gpu import rows as rows_of
from benchmarks.gpu import summary
from benchmarks.gpu.goals import MET, NOT_MET, Goal
from benchmarks.gpu.parts import GRACE_SECONDS, PARTS, TOTAL_SECONDS, seconds_of
from benchmarks.gpu.rows import RUN, WHOLE_PART
from benchmarks.gpu.run import FAILED, MEASURED, MISMATCH, NOT_RUN, Run
from benchmarks.support.results import RESULTS

# More than a test takes on the busiest machine.
HOUR = 3600


def states(rows):
    return {row["name"]: row["state"] for row in rows}


def parts_of(monkeypatch, **runs):
    """The program with these parts."""
    parts = {name: SimpleNamespace(run=run, seconds=600, least=1) for name, run in runs.items()}
    for module in (gpu, parts_of_program):
        monkeypatch.setattr(module, "PARTS", parts)


def test_a_part_that_raises_does_not_hide_the_rest(monkeypatch, tmp_path):
    def raises(run):
        run.keep("first")
        raise ValueError("no such luck")

    def goes_on(run):
        run.attempt("one", lambda run: {"median_ms": 1.0})
        run.attempt("two", lambda run: 1 / 0)
        run.attempt("three", lambda run: {"median_ms": 3.0})

    parts_of(monkeypatch, a=raises, b=goes_on)
    out = tmp_path / "out.json"
    gpu.begin(tmp_path / "rows", "abc", is_new=True)
    report = gpu.run_all(["a", "b"], True, HOUR, tmp_path / "rows", out)
    wanted = {"first": MEASURED, WHOLE_PART: FAILED, "one": MEASURED, "two": FAILED}
    assert states(report["rows"]) == {**wanted, "three": MEASURED}
    assert "ValueError: no such luck" in report["rows"][1]["why"]
    assert json.loads(out.read_text()) == report and report["setting"] == {"commit": "abc"}


def test_a_run_goes_on_with_the_rows_of_an_earlier_one(monkeypatch, tmp_path):
    tried, broken = [], [True]

    def one(run):
        run.attempt("right", lambda run: tried.append("right") or {})
        run.attempt("wrong", lambda run: tried.append("wrong") or ({} if not broken else 1 / 0))

    def other(run):
        run.attempt("other", lambda run: tried.append("other") or {})

    parts_of(monkeypatch, a=one, b=other)
    out, rows = tmp_path / "out.json", tmp_path / "rows"
    gpu.begin(rows, "abc", is_new=False)
    gpu.run_all(["a", "b"], True, HOUR, rows, out)
    broken.clear()
    gpu.begin(rows, "abc+", is_new=False)
    report = gpu.run_all(["a", "b"], True, HOUR, rows, out)
    assert tried == ["right", "wrong", "other", "wrong"]
    assert states(report["rows"]) == {"right": MEASURED, "wrong": MEASURED, "other": MEASURED}
    with pytest.raises(ValueError, match="rows of commit abc"):
        gpu.begin(rows, "def", is_new=False)
    gpu.begin(rows, "def", is_new=True)
    assert states(rows_of.read(rows)) == {RUN: MEASURED}


def test_a_part_for_which_no_time_is_left_is_named(monkeypatch, tmp_path):
    parts_of(monkeypatch, a=lambda run: None)
    report = gpu.run_all(["a"], True, 2, tmp_path / "rows", tmp_path / "out.json")
    assert states(report["rows"]) == {WHOLE_PART: NOT_RUN}


CHILD = """
import json, os, subprocess, sys, time
rows = open(sys.argv[sys.argv.index("--rows") + 1], "a")
rows.write(json.dumps({"part": "p", "name": "kept", "state": "measured"}) + "\\n" + '{"half": ')
rows.flush()
"""


@pytest.mark.parametrize(
    ("ending", "why"),
    [
        ("os._exit(7)", "ended with 7"),
        ("os.kill(os.getpid(), 11)", "ended with -11"),
        ("subprocess.run(['sleep', '60'])", "ended after"),
        ("", ""),
    ],
)
def test_a_process_that_dies_or_hangs_leaves_its_rows(monkeypatch, tmp_path, ending, why):
    script, rows = tmp_path / "gpu.py", tmp_path / "rows"
    script.write_text(CHILD + ending)
    monkeypatch.setattr(gpu, "PROGRAM", [str(script)])
    monkeypatch.setattr(gpu, "GRACE_SECONDS", 1)
    begin = time.monotonic()
    gpu.run_in_child("p", 1, rows)
    assert time.monotonic() - begin < 50
    found = rows_of.read(rows)
    assert found[0]["name"] == "kept" and len(found) == (2 if why else 1)
    assert not why or (found[1]["state"] == FAILED and why in found[1]["why"])


def test_a_process_that_loses_the_device_is_followed_by_another(monkeypatch, tmp_path):
    script, rows = tmp_path / "gpu.py", tmp_path / "rows"
    script.write_text(f"{CHILD}if len(open(rows.name).readlines()) < 3: os._exit(75)")
    monkeypatch.setattr(gpu, "PROGRAM", [str(script)])
    gpu.run_in_child("p", 20, rows)
    assert rows.read_text().count("kept") == 2


def test_what_lost_the_device_is_not_tried_again_and_the_rest_is(monkeypatch, tmp_path):
    def is_lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    tried = []

    def part(run):
        run.attempt("loses", lambda run: tried.append("loses") or is_lost())
        run.attempt("next", lambda run: tried.append("next") or {})

    parts_of(monkeypatch, a=part)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", is_lost)
    rows, until = tmp_path / "rows", time.monotonic() + 60
    assert gpu.run_part("a", False, until, rows) == gpu.LOST
    assert gpu.run_part("a", False, until, rows) == 0
    assert tried == ["loses", "next"]
    found = {"loses": FAILED, "next": MEASURED, WHOLE_PART: MEASURED}
    assert states(rows_of.read(rows)) == found
    assert not rows_of.is_complete(rows_of.read(rows), "a")


@pytest.mark.exhaustive
def test_a_part_in_its_process_writes_its_rows(tmp_path):
    """Where there is no GPU each says so."""
    gpu.run_in_child("roofline", 60, tmp_path / "rows")
    found = states(rows_of.read(tmp_path / "rows"))
    assert found.pop(WHOLE_PART) == MEASURED and len(found) == 4
    assert set(found.values()) == {MEASURED if torch.cuda.is_available() else FAILED}


@pytest.mark.parametrize("total", [60, 200, 300, TOTAL_SECONDS, 1200])
def test_whatever_parts_take_the_whole_ends_in_time(total):
    names, left, taken = list(PARTS), total, {}
    for name in names:
        taken[name] = seconds_of(name, names, left, total / TOTAL_SECONDS)
        assert taken[name] == 0 or taken[name] >= PARTS[name].least
        left -= taken[name] + GRACE_SECONDS * (taken[name] > 0)
    assert left >= 0
    assert total < TOTAL_SECONDS or all(taken.values())


def test_rows_that_come_too_late_are_named():
    rows = []
    run = Run("part", torch.device("cpu"), True, time.monotonic() - 1, rows.append)
    run.attempt("late", lambda run: {})
    assert states(rows) == {"late": NOT_RUN}


def test_goals_are_judged_by_their_limit():
    rows = [{"part": "p", "name": "r", "state": MEASURED, "beside": {"x": {"ratio": 1.5}}}]

    def ratio(row, part):
        return row["beside"]["x"]["ratio"]

    judged = [
        Goal("g", "p", "r", ratio, **limit).judge(rows)["state"]
        for limit in ({"at_least": 1.5}, {"at_least": 1.6}, {"at_most": 1.5}, {"at_most": 1.4})
    ]
    assert judged == [MET, NOT_MET, MET, NOT_MET]
    rows[0]["state"] = MISMATCH
    assert Goal("g", "p", "r", ratio, at_least=1.0).judge(rows)["state"] == NOT_RUN


def test_without_a_gpu_the_program_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--dry-run"])
    assert "--out" in capsys.readouterr().err


def test_a_result_is_named_after_its_card():
    path = summary.path_of("NVIDIA H100 80GB HBM3")
    assert path == RESULTS / "gpu-nvidia-h100-80gb-hbm3.json"
