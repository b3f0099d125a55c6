"""The GPU program: builds the library, tests it on the card, measures it, and writes all down.

    python -m benchmarks.gpu                #  one GPU, nvcc, no network; under ten minutes
    python -m benchmarks.gpu --dry-run      #  every step in miniature on the CPU; means nothing

Every part is a process of its own with a time of its own: one that fails, hangs or loses the device
ends alone, and the rows that it had are kept. What is timed was compared first with a reference;
what does not agree is not timed. The results, with the goals beside them, are in
benchmarks/results/gpu-<card>.json, written anew after every part.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.goals import GOALS
from benchmarks.gpu.run import FAILED, NOT_RUN, Row, Run, said
from benchmarks.support.results import RESULTS, ROOT

PROGRAM = ("-m", "benchmarks.gpu")
TOTAL_SECONDS = 570
# What a part is given to end by itself before it is ended.
GRACE_SECONDS = 8


@dataclass(frozen=True)
class Part:
    """A step of the program.

    Attributes:
        module, function, arguments: what runs it; imported only where it runs.
        seconds: what it may take.
        least: what is kept free for it while those before it run.
    """

    module: str
    function: str
    seconds: float
    least: float
    arguments: tuple[str, ...] = ()

    def run(self, run: Run) -> None:
        module = importlib.import_module(f"benchmarks.gpu.{self.module}")
        getattr(module, self.function)(run, *self.arguments)


PARTS: dict[str, Part] = {
    "build": Part("build", "build", 200, 60),
    "setting": Part("build", "setting", 20, 8),
    "roofline": Part("roofline", "roofline", 25, 10),
    "validate": Part("validate", "validate", 100, 40),
    "second_moment": Part("second_moment", "second_moment", 45, 25),
    "rank_one": Part("rank_one", "rank_one", 40, 20),
    "gpt2-xl": Part("edits", "edits", 150, 70, ("gpt2-xl",)),
    "llama-3-8b": Part("edits", "edits", 110, 50, ("llama-3-8b",)),
    "cholesky": Part("cholesky", "cholesky", 25, 12),
    "values": Part("values", "values", 20, 10),
    "gpt-j-6b": Part("edits", "edits", 90, 30, ("gpt-j-6b",)),
    "sanitize": Part("validate", "sanitize", 90, 20),
}


def run_part(name: str, part: Part, dry_run: bool, seconds: float, rows: Path) -> None:
    """Run a part in this process; its rows are appended to a file as they come."""

    def sink(row: Row) -> None:
        append(rows, row)
        print(f"  {row['name']}: {brief(row)}", flush=True)

    device = torch.device("cpu" if dry_run else "cuda")
    run = Run(name, device, dry_run, time.monotonic() + seconds, sink)
    try:
        part.run(run)
    except Exception as error:
        run.keep(name, FAILED, why=said(error))


def run_in_child(name: str, seconds: float, rows: Path) -> None:
    """Run a part in a process of its own, and end it and all that it has started in time."""
    asked = ["--only", name, "--seconds", f"{seconds:.0f}", "--rows", str(rows)]
    command = [sys.executable, *PROGRAM, *asked]
    child = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code = child.wait(seconds + GRACE_SECONDS)
        why = f"its process ended with {code}" if code else ""
    except subprocess.TimeoutExpired:
        why = f"it was ended after {seconds + GRACE_SECONDS:.0f} s"
    finally:  # also what it has left running, and also on Ctrl-C
        end(child)
    if why:
        append(rows, {"part": name, "name": name, "state": FAILED, "why": why})


def end(child: subprocess.Popen[bytes]) -> None:
    """End a child and those of its process group, which is its own."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def seconds_of(name: str, names: Sequence[str], left: float) -> float:
    """What a part may take of the seconds that are left: those after it keep their least."""
    later = names[names.index(name) + 1 :]
    kept = sum(PARTS[other].least + GRACE_SECONDS for other in later)
    return min(PARTS[name].seconds, left - kept - GRACE_SECONDS)


def run_all(names: Sequence[str], dry_run: bool, out: Path | None, commit: str | None) -> Row:
    """Run the parts one after another; the report is written after each."""
    end_by, report, seconds = time.monotonic() + TOTAL_SECONDS, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        for name in names:
            given = seconds_of(name, names, end_by - time.monotonic())
            print(f"{name}, at most {given:.0f} s", flush=True)
            begin = time.monotonic()
            if given < 1:
                why = "no time was left"
                append(file, {"part": name, "name": name, "state": NOT_RUN, "why": why})
            elif dry_run:
                run_part(name, PARTS[name], True, given, file)
            else:
                run_in_child(name, given, file)
            seconds[name] = round(time.monotonic() - begin, 1)
            report = report_of(read(file), seconds, dry_run, commit)
            write(out or path_of(report), report)
    return report


def append(file: Path, row: Row) -> None:
    """On a line of its own, also behind one that a killed process has left half written."""
    with file.open("a", encoding="utf-8") as rows:
        rows.write(f"\n{json.dumps(row)}\n")


def read(file: Path) -> list[Row]:
    """The rows of a file; half a line is none."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def report_of(rows: list[Row], seconds: Row, dry_run: bool, commit: str | None) -> Row:
    """All that is written: on what it ran, the goals, and every row."""
    setting = next((row for row in rows if row["part"] == "setting"), {})
    facts = {k: v for k, v in setting.items() if k not in ("part", "name", "state")}
    if commit:
        facts["commit"] = commit
    judged = [goal.judge([] if dry_run else rows) for goal in GOALS]
    return {
        "dry_run": dry_run,
        "setting": facts,
        "seconds_of_parts": seconds,
        "goals": judged,
        "rows": rows,
    }


def path_of(report: Row) -> Path:
    card = report["setting"].get("gpu") or "unknown"
    return RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', card.lower()).strip('-')}.json"


def write(path: Path, report: Row) -> None:
    """The report, whole or not at all, with every row on a line of its own."""
    rows = ",\n".join(json.dumps(row) for row in report["rows"])
    head = json.dumps({k: v for k, v in report.items() if k != "rows"}, indent=1)
    text = f'{head.removesuffix("}").rstrip()},\n "rows": [\n{rows}\n]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    spare = path.with_suffix(".part")
    spare.write_text(text, encoding="utf-8")
    spare.replace(path)


def brief(row: Row) -> str:
    """A row as a line for whoever watches."""
    if "why" in row and row["state"] != "measured":
        return f"{row['state']}: {row['why']}"
    shown = [
        f"{row[key]:g} {key.split('_', 1)[1].replace('_per_s', '/s')}"
        for key in ("median_ms", "median_s")
        if key in row
    ]
    shown += [f"{name} x {other['ratio']:g}" for name, other in row.get("beside", {}).items()]
    shown += [f"{row[k]:g} {k}" for k in ("seconds", "edits_per_s", "gb_per_s") if k in row]
    return ", ".join(shown) or row["state"]


def show(report: Row) -> None:
    """The goals, last: what is at the end of an output is read first."""
    if report["dry_run"]:
        print("dry run: nothing was measured")
    for goal in report["goals"]:
        print(f"{goal['state']:8} {goal['goal']}: {goal['reached']} (wanted {goal['wanted']})")


def main(arguments: Sequence[str] | None = None) -> Row | None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--dry-run", action="store_true", help="in miniature on the CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--commit", default=None, help="where there is no git to ask")
    parser.add_argument("--out", type=Path, default=None)
    for name in ("--only", "--seconds", "--rows"):  # a part in its process
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.only:
        run_part(args.only, PARTS[args.only], False, float(args.seconds), Path(args.rows))
        return None
    if args.dry_run and args.out is None:
        parser.error("--dry-run needs --out: results/ holds what was measured")
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("there is no GPU here; --dry-run runs every step in miniature on the CPU")
    report: dict[str, Any] = run_all(args.parts, args.dry_run, args.out, args.commit)
    show(report)
    return report


if __name__ == "__main__":
    main()
