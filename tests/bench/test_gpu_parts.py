"""The parts of benchmarks/gpu in miniature, where there is no GPU."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from cuda_calls import CALLS, KERNELS, OTHER_KERNELS, op_of

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import bench, edits, reports, second_moment, smoke, summary, tables, validate
from benchmarks.gpu.goals import GOALS
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.run import FAILED, MEASURED, MISMATCH, NOT_RUN, SKIPPED, Run
from benchmarks.support.results import ROOT
from rome_fast import EditRequest
from rome_fast.bench.own import RomeFast
from rome_fast.info import OPS


def run_of(rows):
    """Miniature, on the CPU; its rows are appended to a list."""
    return Run("part", torch.device("cpu"), True, time.monotonic() + 60, rows.append)


def states(rows):
    return {row["name"]: row["state"] for row in rows}


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "dry.json"
    # However busy the machine is.
    report = gpu.main(["--dry-run", "--out", str(out), "--seconds", "5000"])
    assert json.loads(out.read_text()) == report
    return report


@pytest.mark.exhaustive
def test_every_part_has_rows_and_none_fails(dry):
    assert {row["part"] for row in dry["rows"]} == set(PARTS) == set(dry["seconds_of_parts"])
    bad = [row for row in dry["rows"] if row["state"] not in (MEASURED, SKIPPED)]
    assert not bad
    skipped = {row["name"] for row in dry["rows"] if row["state"] == SKIPPED}
    captured = {f"edit, {name}, captured" for name in smoke.MODELS}
    assert skipped == {"build", "memcheck", "racecheck", *captured}


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
        found = edit(self, case)
        found.dense.copy_(found.dense.roll(1, 0))
        return found

    rows = []
    run = run_of(rows)
    made = bench.Bench(run, "gpt2-xl")
    monkeypatch.setattr(RomeFast, "edit", turned)
    run.attempt("warm edit", edits.warm, made, "float32", "", time.monotonic() + 60)
    assert rows[0]["state"] == MISMATCH and "whole model: 1 - cosine" in rows[0]["why"]


def test_the_tests_of_kernels_are_found_and_those_of_the_emulation_are_not():
    found = [Path(name).name for name in validate.kernel_tests()]
    assert len(found) >= 3 and "test_value_ops.py" in found
    assert not {"test_emulation.py", "test_carried.py"} & set(found)


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


@pytest.mark.exhaustive
def test_documents_show_what_was_measured_or_that_nothing_was(monkeypatch, tmp_path, dry):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.gpu_tables() == tables.gpu_in_readme() == [tables.UNMEASURED]
    goals = [goal.judge(dry["rows"]) for goal in GOALS]
    report = {**dry, "setting": {"gpu": "X", "commit": "abc"}, "goals": goals}
    summary.write(tmp_path / "gpu-x.json", report)
    lines = tables.gpu_tables()
    assert lines[0].startswith("| X (abc) | wanted | reached | state | at best, estimated | ")
    assert tables.UNMEASURED not in lines
    assert any(line.startswith("| warm edit, tf32 | ") for line in lines)
    assert lines[2].count("|") == 7 and lines[2].startswith("| second moment, bfloat16")
    assert tables.gpu_in_readme()[0].startswith("One edit on an X (abc): GPT-2 XL ")
    report["setting"]["note"] = "measured on other code"
    summary.write(tmp_path / "gpu-x.json", report)
    lines = tables.gpu_tables()
    assert "reached then" in lines[0] and lines[2].endswith("| not measured |")


def test_an_op_that_fails_in_the_smoke_test_hides_no_other(monkeypatch):
    def raises(*args, **options):
        raise ValueError("no such luck")

    monkeypatch.setattr(smoke, "MODELS", {})
    monkeypatch.setattr(smoke.ops, "value_step_", raises)
    rows = []
    smoke.smoke(run_of(rows))
    assert {op_of(row["name"]) for row in rows} >= set(OPS)
    for row in rows:
        is_broken = row["name"].startswith("value_step_")
        assert row["state"] == (FAILED if is_broken else MEASURED), row


def test_the_smoke_test_sees_a_wrong_op(monkeypatch):
    update = smoke.ops.second_moment_update_

    def slightly_off(moment, keys, *args, **options):
        update(moment, keys, *args, **options)
        if options.get("backend") != "torch":
            moment[0, 0] *= 1.1

    monkeypatch.setattr(smoke, "MODELS", {})
    monkeypatch.setattr(smoke.ops, "second_moment_update_", slightly_off)
    rows = []
    smoke.smoke(run_of(rows))
    wrong = {row["name"].split(",")[0] for row in rows if row["state"] == MISMATCH}
    assert wrong == {"second_moment_update_", "wgmma beside mma"}


def test_what_is_sanitized_has_every_op_and_every_kernel_that_can_be_chosen():
    """Racecheck looks at kernels of this namespace alone."""
    csrc = ROOT / "csrc"
    registered = re.findall(r'm.impl\("(\w+)"', (csrc / "register_cuda.cpp").read_text())
    assert {op_of(name) for name in CALLS} == set(registered) == set(OPS)
    kernels = csrc / "kernels" / "cuda"
    named = re.findall(r'name == "(\w+)"', (kernels / "second_moment.cu").read_text())
    assert set(named) == set(KERNELS["second_moment_update_"])
    others = re.findall(r'strcmp\(wanted, "(\w+)"\)', (kernels / "chosen.h").read_text())
    assert {"", *others} == set(OTHER_KERNELS)
    selection = Path(validate.ON_CARD).read_text()
    assert '@pytest.mark.parametrize(("name", "kernel"), KERNELS_OF_CALLS)' in selection
    for file in kernels.glob("*.cu"):
        assert "namespace rome_fast {" in file.read_text(), file


def test_requests_of_a_sequence_differ_in_length_from_their_neighbours():
    made = [bench.lengthened(EditRequest("{} is", "x", "y"), number) for number in range(60)]
    sizes = [(len(r.prompt.split()), len(r.subject.split())) for r in made]
    assert len(set(sizes)) == 30
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in pairwise(sizes))
