"""benchmarks/gpu where there is no GPU: all parts in miniature, and what must not hide what."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import reports, second_moment, tables, validate
from benchmarks.gpu.edits import Bench
from benchmarks.gpu.goals import GOALS, MET, NOT_MET, Goal
from benchmarks.gpu.run import FAILED, MEASURED, MISMATCH, NOT_RUN, SKIPPED, Run
from benchmarks.support.results import RESULTS
from rome_fast.bench.own import RomeFast


def run_of(rows, part="part", seconds=60.0):
    """Miniature, on the CPU; its rows are appended to a list."""
    return Run(part, torch.device("cpu"), True, time.monotonic() + seconds, rows.append)


def states(rows):
    return {row["name"]: row["state"] for row in rows}


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "dry.json"
    report = gpu.main(["--dry-run", "--out", str(out)])
    assert json.loads(out.read_text()) == report
    return report


@pytest.mark.exhaustive
def test_every_part_has_rows_and_none_fails(dry):
    assert {row["part"] for row in dry["rows"]} == set(gpu.PARTS) == set(dry["seconds_of_parts"])
    bad = [row for row in dry["rows"] if row["state"] not in (MEASURED, SKIPPED)]
    assert not bad
    skipped = {row["name"] for row in dry["rows"] if row["state"] == SKIPPED}
    assert skipped == {"build", "memcheck", "racecheck"}


@pytest.mark.exhaustive
def test_a_dry_run_meets_no_goal_and_says_what_it_is(dry):
    assert dry["dry_run"] and {goal["state"] for goal in dry["goals"]} == {NOT_RUN}


@pytest.mark.exhaustive
def test_every_goal_finds_its_figure(dry):
    missing = [goal.text for goal in GOALS if goal.judge(dry["rows"])["reached"] is None]
    assert not missing


@pytest.mark.exhaustive
def test_what_is_timed_has_a_spread_and_its_rivals(dry):
    timed = [row for row in dry["rows"] if "beside" in row]
    assert len(timed) > 40
    for row in timed:
        unit = "s" if "median_s" in row else "ms"
        for times in (row, *row["beside"].values()):
            assert times[f"median_{unit}"] > 0 and len(times[f"quartiles_{unit}"]) == 2


def test_a_part_that_raises_does_not_hide_the_rest(monkeypatch, tmp_path):
    def raises(run):
        run.keep("first")
        raise ValueError("no such luck")

    def goes_on(run):
        run.attempt("one", lambda run: {"median_ms": 1.0})
        run.attempt("two", lambda run: 1 / 0)
        run.attempt("three", lambda run: {"median_ms": 3.0})

    parts = {
        name: SimpleNamespace(run=run, seconds=5, least=1)
        for name, run in {"a": raises, "b": goes_on}.items()
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    rows = gpu.run_all(["a", "b"], True, tmp_path / "out.json", "abc")["rows"]
    wanted = {"first": MEASURED, "a": FAILED, "one": MEASURED, "two": FAILED, "three": MEASURED}
    assert states(rows) == wanted
    assert "ValueError: no such luck" in rows[1]["why"]
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["rows"] == rows and written["setting"] == {"commit": "abc"}


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
    assert time.monotonic() - begin < 10
    found = gpu.read(rows)
    assert found[0]["name"] == "kept" and len(found) == (2 if why else 1)
    assert not why or (found[1]["state"] == FAILED and why in found[1]["why"])


@pytest.mark.exhaustive
def test_a_part_in_its_process_writes_its_rows(tmp_path):
    """Where there is no GPU each says so."""
    gpu.run_in_child("roofline", 60, tmp_path / "rows")
    found = states(gpu.read(tmp_path / "rows"))
    assert len(found) == 4
    assert set(found.values()) == {MEASURED if torch.cuda.is_available() else FAILED}


def test_whatever_parts_take_the_whole_ends_in_time():
    names, left = list(gpu.PARTS), gpu.TOTAL_SECONDS
    for name in names:
        given = gpu.seconds_of(name, names, left)
        assert given >= gpu.PARTS[name].least
        left -= given + gpu.GRACE_SECONDS
    assert 0 <= left and gpu.TOTAL_SECONDS < 600


@pytest.mark.exhaustive
def test_what_does_not_agree_is_not_timed(monkeypatch):
    update = second_moment.ops.second_moment_update_

    def slightly_off(moment, keys, **options):
        update(moment, keys, **options)
        if keys.dtype == torch.float16:
            moment[0, 0] *= 1.01

    monkeypatch.setattr(second_moment.ops, "second_moment_update_", slightly_off)
    rows = []
    second_moment.second_moment(run_of(rows))
    for row in rows:
        is_off = row["name"].startswith("float16")
        assert row["state"] == (MISMATCH if is_off else MEASURED)
        assert ("median_ms" in row) is not is_off
        assert not is_off or "not timed" in row["why"]


@pytest.mark.exhaustive
def test_what_is_written_beside_the_result_is_not_timed(monkeypatch):
    update = second_moment.ops.second_moment_update_

    def writes_above(moment, keys, **options):
        update(moment, keys, **options)
        moment[0, -1] = 0

    monkeypatch.setattr(second_moment.ops, "second_moment_update_", writes_above)
    rows = []
    second_moment.second_moment(run_of(rows))
    assert set(states(rows).values()) == {MISMATCH}


@pytest.mark.exhaustive
def test_another_edit_is_not_timed(monkeypatch):
    edit = RomeFast.edit

    def turned(self, case):
        made = edit(self, case)
        made.dense.copy_(made.dense.roll(1, 0))
        return made

    rows = []
    run = run_of(rows)
    bench = Bench(run, "gpt2-xl")
    monkeypatch.setattr(RomeFast, "edit", turned)
    run.attempt("warm edit", bench.warm, "float32", time.monotonic() + 60)
    assert rows[0]["state"] == MISMATCH and "whole model: 1 - cosine" in rows[0]["why"]


def test_rows_that_come_too_late_are_named():
    rows = []
    run_of(rows, seconds=-1).attempt("late", lambda run: {})
    assert states(rows) == {"late": NOT_RUN}


def test_the_tests_of_kernels_are_found_and_those_of_the_emulation_are_not():
    found = [Path(name).name for name in validate.kernel_tests()]
    assert len(found) >= 3 and "test_value_ops.py" in found
    assert not {"test_emulation.py", "test_carried.py"} & set(found)


def test_goals_are_judged_by_their_limit():
    rows = [{"part": "p", "name": "r", "state": MEASURED, "beside": {"x": {"ratio": 1.5}}}]
    path = ("beside", "x", "ratio")
    judged = [
        Goal("g", "p", "r", path, **limit).judge(rows)["state"]
        for limit in ({"at_least": 1.5}, {"at_least": 1.6}, {"at_most": 1.5}, {"at_most": 1.4})
    ]
    assert judged == [MET, NOT_MET, MET, NOT_MET]
    rows[0]["state"] = MISMATCH
    assert Goal("g", "p", "r", path, at_least=1.0).judge(rows)["state"] == NOT_RUN


def test_a_test_that_hangs_is_known_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setenv("ROME_FAST_REPORTS", str(tmp_path / "reports"))
    reports._note("a", "started")
    reports._note("a", "failed", "why")
    reports._note("a", "passed")
    reports._note("b", "started")
    found = reports.outcomes(tmp_path / "reports")
    assert {name: report["outcome"] for name, report in found.items()} == {
        "a": "failed",
        "b": "started",
    }


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
    path = gpu.path_of({"setting": {"gpu": "NVIDIA H100 80GB HBM3"}})
    assert path == RESULTS / "gpu-nvidia-h100-80gb-hbm3.json"


@pytest.mark.exhaustive
def test_documents_show_what_was_measured_or_that_nothing_was(monkeypatch, tmp_path, dry):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.gpu_tables() == [tables.UNMEASURED]
    goals = [goal.judge(dry["rows"]) for goal in GOALS]
    gpu.write(tmp_path / "gpu-x.json", {**dry, "setting": {"gpu": "X"}, "goals": goals})
    lines = tables.gpu_tables()
    assert lines[0] == "| X | wanted | reached | state | backend |"
    assert tables.UNMEASURED not in lines
    assert any(line.startswith("| warm edit, tf32 | ") for line in lines)
    assert lines[2].count("|") == 6 and lines[2].startswith("| second moment, bfloat16")
