"""What a Session costs beside plain edits, and whether a thousand edits make it slower or larger.

    python -m benchmarks.session.session_speed --out benchmarks/results/session-speed.json

`overhead`: the same facts by `edit_many` and by a Session of the weight with a journal,
with and without looks at the model's health, in turns; what is not the search for v* is compared.
`long`: edits of random weights in the shape of the small GPT-2, with few contexts and steps, so
that what is not the search weighs more than it does in use: seconds an edit and resident memory
along the way, beside what the log takes.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import rome_fast
from benchmarks.edit.bench_edit import CONTEXTS, random_gpt2, well_conditioned
from benchmarks.edit.edit_order import distinct
from benchmarks.session.session_curves import request_of
from benchmarks.support.results import write
from rome_fast import HealthCheck, RomeHparams, SecondMoment, Session
from rome_fast.bench.peak import resident_mib
from rome_fast.bench.setting import setting

STOP_LOSS = 0.3


def embedded(n: int) -> dict[str, Any]:
    """The embedded model with its preset, and facts about distinct subjects."""
    model, tok, facts = rome_fast.demo.load()
    hparams = RomeHparams.for_model(model).replace(v_stop_loss=STOP_LOSS)
    requests = [request_of(fact) for fact in distinct(facts, n, seed=0)]
    return {"model": model, "tok": tok, "hparams": hparams, "requests": requests, "moment": None}


def gpt2_124m(n: int, **hparams: Any) -> dict[str, Any]:
    """Random weights, layer 6; the learning rate is so small that no search stops early."""
    model, tok = random_gpt2(rome_fast.demo.load()[1])
    subjects = [f"Person {number} of {number % 7} places" for number in range(n)]
    return {
        "model": model,
        "tok": tok,
        "hparams": RomeHparams(layers=[6], v_lr=1e-3, **hparams),
        "requests": [rome_fast.EditRequest("{} plays the", s, "violin") for s in subjects],
        "moment": SecondMoment.from_moment(well_conditioned(3072), 10**6),
    }


def seconds_of(case: dict[str, Any], journal: Path, health: HealthCheck | None) -> dict[str, float]:
    """Seconds an edit, and of them those of the search for v*; undone afterwards.

    Args:
        health: of a Session; None edits by ``edit_many``.
    """
    given = {"second_moment": case["moment"], "context_templates": list(CONTEXTS)}
    model, tok, requests = case["model"], case["tok"], case["requests"]
    begin = time.perf_counter()
    if health is None:
        results = rome_fast.edit_many(
            model, tok, requests, case["hparams"], progress=False, **given
        )
        seconds = time.perf_counter() - begin
        results[-1]._undo.history.rewind(0)
    else:
        own = {"journal": journal, "health": health, "stop_loss": STOP_LOSS, "form": "weight"}
        with Session(model, tok, case["hparams"], **own, **given) as session:
            results = session.edit_many(requests, progress=False)
            seconds = time.perf_counter() - begin
            session.undo(len(results))
    n = len(results)
    return {"total": seconds / n, "value": sum(r.seconds["value"] for r in results) / n}


def overhead(case: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Each way in turns: medians, and what a Session adds as a share of the search for v*."""
    ways = {
        "edit_many": None,
        "session": HealthCheck(every=0),
        "session with looks": HealthCheck(on_unhealthy="warn"),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, health in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds = seconds_of(case, Path(folder) / "edits.journal", health)
            if number:  # the first warms up
                runs[name].append(seconds)
    return {name: _beside(some, runs["edit_many"]) for name, some in runs.items()}


def _beside(runs: list[dict[str, float]], plain: list[dict[str, float]]) -> dict[str, Any]:
    shares = [
        (run["total"] - run["value"] - (other["total"] - other["value"])) / run["value"]
        for run, other in zip(runs, plain, strict=True)
    ]
    medians = {key: statistics.median(run[key] for run in runs) for key in ("total", "value")}
    added = {"added": statistics.median(shares), "added_spread": [min(shares), max(shares)]}
    return {**medians, **added}


def long_run(n_edits: int) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """(summary, a row every hundred edits)."""
    case = gpt2_124m(n_edits, v_num_grad_steps=3)
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "edits.journal"
        with Session(
            case["model"],
            case["tok"],
            case["hparams"],
            second_moment=case["moment"],
            context_templates=list(CONTEXTS[:3]),
            journal=journal,
            health=HealthCheck(every=0),
            form="weight",
        ) as session:
            stream = session.stream(case["requests"], progress=False)
            begin, times = time.perf_counter(), []
            for number, result in enumerate(stream, 1):
                now = time.perf_counter()
                times.append(now - begin)
                begin = now
                assert result.edit_id == number
                if number % 100 == 0 or number == n_edits:
                    gc.collect()
                    rows.append(
                        {
                            "edits": number,
                            "seconds_an_edit": statistics.median(times[-100:]),
                            "resident_mib": resident_mib(),
                            "journal_mib": journal.stat().st_size / 2**20,
                        }
                    )
                    begin = time.perf_counter()
    grown = rows[-1]["resident_mib"] - rows[0]["resident_mib"]
    logged = rows[-1]["journal_mib"] - rows[0]["journal_mib"]
    summary = {
        "slowdown": rows[-1]["seconds_an_edit"] / rows[0]["seconds_an_edit"],
        "memory_grown_mib": grown,
        "journal_grown_mib": logged,
    }
    return summary, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=1000, help="of the long run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    report: dict[str, Any] = {"setting": setting(), "edits": args.edits, "rounds": args.rounds}
    cases = {"embedded": embedded(100), "gpt2-124m": gpt2_124m(4)}
    report["overhead"] = {name: overhead(case, args.rounds) for name, case in cases.items()}
    print(report["overhead"], flush=True)
    report["long"], rows = long_run(args.edits)
    print(report["long"], *rows, sep="\n")
    if args.out:
        write(args.out, report, rows, "long_run")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
