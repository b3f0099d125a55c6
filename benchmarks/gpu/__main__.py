"""The GPU program: builds the library, tests it on the card, measures it, and writes all down.

    python -m benchmarks.gpu --seconds 540 --rows FILE.jsonl     #  one GPU, no network
    python -m benchmarks.gpu --dry-run --out FILE                #  in miniature on the CPU

Every part is a process of its own with a time of its own: one that fails, hangs or loses the device
ends alone, and the rows that it had are kept. What is timed was compared first with a reference;
what does not agree is not timed. Rows are written as they come; a run that is given the rows of an
earlier one goes on with them. The report, with the goals beside what was reached, is in
benchmarks/results/gpu-<card>.json, written anew after every part.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from benchmarks.gpu.parts import GRACE_SECONDS, PARTS, TOTAL_SECONDS, seconds_of
from benchmarks.gpu.rows import RUN, WHOLE_PART, append, commit_of, done, is_complete, read
from benchmarks.gpu.run import FAILED, MEASURED, NOT_RUN, DeviceLostError, Row, Run, said
from benchmarks.gpu.summary import brief, path_of, report_of, show, write
from benchmarks.support.results import ROOT
from rome_fast.bench.setting import commit as commit_here

PROGRAM = ("-m", "benchmarks.gpu")
# The exit code of a process that has lost the device: another one goes on behind what lost it.
LOST = 75


def run_part(name: str, dry_run: bool, until: float, rows: Path) -> int:
    """Run a part in this process; the exit code. Its rows are appended to a file as they come."""

    def sink(row: Row) -> None:
        append(rows, row)
        print(f"  {row['name']}: {brief(row)}", flush=True)

    started, there = time.monotonic(), done(read(rows), name)
    device = torch.device("cpu" if dry_run else "cuda")
    run = Run(name, device, dry_run, until, sink, there)
    try:
        PARTS[name].run(run)
    except DeviceLostError as error:
        print(f"  the device was lost {error}", flush=True)
        return LOST
    except Exception as error:
        run.keep(WHOLE_PART, FAILED, why=said(error))
    else:
        run.keep(WHOLE_PART, seconds=round(time.monotonic() - started, 1))
    return 0


def run_in_child(name: str, seconds: float, rows: Path) -> None:
    """Run a part in a process of its own, and end it and all that it has started in time."""
    until = time.monotonic() + seconds
    asked = ["--only", name, "--until", f"{until:.1f}", "--rows", str(rows)]
    code: int | None = LOST
    while code == LOST and time.monotonic() < until:
        command = [sys.executable, *PROGRAM, *asked]
        child = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        try:
            code = child.wait(until + GRACE_SECONDS - time.monotonic())
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also what it has left running, and also on Ctrl-C
            end(child)
    if code != 0:
        late = f"it was ended after {seconds + GRACE_SECONDS:.0f} s"
        why = late if code is None else f"its process ended with {code}"
        append(rows, {"part": name, "name": WHOLE_PART, "state": FAILED, "why": why})


def end(child: subprocess.Popen[bytes]) -> None:
    """End a child and those of its process group, which is its own."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run_all(names: Sequence[str], dry_run: bool, seconds: float, rows: Path, out: Path) -> Row:
    """Run the parts one after another; the report is written after each."""
    end_by = time.monotonic() + seconds
    report: Row = {}
    for name in names:
        given = seconds_of(name, names, end_by - time.monotonic(), seconds / TOTAL_SECONDS)
        if is_complete(read(rows), name):
            print(f"{name}: measured before", flush=True)
        elif not given:
            print(f"{name}: not run", flush=True)
            why = "no time was left"
            append(rows, {"part": name, "name": WHOLE_PART, "state": NOT_RUN, "why": why})
        else:
            print(f"{name}, at most {given:.0f} s", flush=True)
            if dry_run:
                run_part(name, True, time.monotonic() + given, rows)
            else:
                run_in_child(name, given, rows)
        report = report_of(read(rows), dry_run)
        write(out, report)
    return report


def begin(rows: Path, commit: str, is_new: bool) -> None:
    """Note that a run begins.

    Raises:
        ValueError: the rows that are there were measured on another commit.
    """
    rows.parent.mkdir(parents=True, exist_ok=True)
    if is_new:
        rows.unlink(missing_ok=True)
    before = commit_of(read(rows))
    if before is not None and before.rstrip("+") != commit.rstrip("+"):
        raise ValueError(f"{rows} has rows of commit {before}, this is {commit}: name another file")
    append(rows, {"part": RUN, "name": RUN, "state": MEASURED, "commit": commit})


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    add = found.add_argument
    add("--seconds", type=float, default=TOTAL_SECONDS, help="all that it may take")
    add("--rows", type=Path, help="where rows are written; those that are there are gone on with")
    add("--out", type=Path, help="the report; benchmarks/results/gpu-<card>.json")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    add("--commit", help="where there is no git to ask")
    add("--dry-run", action="store_true", help="in miniature on the CPU")
    add("--only", help=argparse.SUPPRESS)  # a part in its process, and the end of its time
    add("--until", type=float, help=argparse.SUPPRESS)
    return found


def main(arguments: Sequence[str] | None = None) -> Row:
    args = parser().parse_args(arguments)
    if args.only:
        sys.exit(run_part(args.only, False, args.until, args.rows))
    if args.dry_run and args.out is None:
        parser().error("--dry-run needs --out: results/ holds what was measured")
    if not args.dry_run and not torch.cuda.is_available():
        parser().error("there is no GPU here; --dry-run runs every step in miniature on the CPU")
    out = args.out or path_of(torch.cuda.get_device_name())
    rows = (args.rows or out.with_suffix(".jsonl")).resolve()
    commit = args.commit or commit_here() or "unknown"
    try:
        begin(rows, f"dry run of {commit}" if args.dry_run else commit, is_new=args.rows is None)
    except ValueError as error:
        parser().error(str(error))
    report = run_all(args.parts, args.dry_run, args.seconds, rows, out)
    show(report)
    return report


if __name__ == "__main__":
    main()
