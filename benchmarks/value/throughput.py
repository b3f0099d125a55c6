"""Edits per second on the real model, beside kmeng01/rome's own code.

    python -m benchmarks.value.throughput --peer kmeng01=CHECKOUT --rounds 3 \
        --out benchmarks/results/throughput.json

CounterFact's first facts, each of another subject, on SmolLM2 with the same C for all. Each way
runs in a process of its own (or in two of one thread), all ways one after the other, and that
several times: seconds are per edit, and the ratios are to kmeng01's of the same round. kmeng01 has
rome_fast's layer, rate and steps, its own solver and stop, and either the 21 contexts that its
settings ask for, or the three that are rome_fast's. Loading the model and making C are not
counted, nor is kmeng01's sampling of contexts; what a call of ``edit`` or ``edit_many`` does is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import rome_fast
from benchmarks.real_model.records import read_counterfact, record_of
from rome_fast.bench.case import Case
from rome_fast.bench.peers import load_peer
from rome_fast.bench.setting import setting
from rome_fast.edit import opened
from rome_fast.prompt.contexts import contexts_for
from rome_fast.prompt.readback import read_targets
from rome_fast.types import EditRequest

N_MANY, N_ONE, N_PEER = 64, 16, 4
PEER, PEER_OF_FEW = "kmeng01, its 21 contexts", "kmeng01, these contexts"
# kmeng01's settings of all models; the bare prompt comes to them.
LENGTHS = [[5, 10], [10, 10]]
TWO = "edit_many, independent, two processes"
Row = dict[str, Any]


class Bench:
    """The model with its C, and the requests."""

    def __init__(self) -> None:
        self.model, self.tok, _ = rome_fast.demo.load("smollm2")
        with opened(self.model, self.tok, None, None, "auto", None, None) as editor:
            self.hparams, self.moment = editor.hparams, editor.second_moment
        self.requests = _of_other_subjects(N_MANY)

    def one_by_one(self) -> Row:
        requests = self.requests[:N_ONE]

        def edits() -> None:
            for request in requests:
                rome_fast.edit(self.model, self.tok, request, second_moment=self.moment)

        return self._timed(requests, edits)

    def many(self, **options: Any) -> Row:
        def edits() -> None:
            given = {"second_moment": self.moment, "progress": False, **options}
            rome_fast.edit_many(self.model, self.tok, self.requests, **given)

        return self._timed(self.requests, edits)

    def _timed(self, requests: Sequence[EditRequest], edits: Callable[[], Any]) -> Row:
        """Seconds per edit, and the share of the edits that the model says when all are made."""
        began = time.perf_counter()
        edits()
        seconds = (time.perf_counter() - began) / len(requests)
        prompts = [self.tok(r.text)["input_ids"] for r in requests]
        targets = [self.tok(f" {r.target}")["input_ids"] for r in requests]
        readings = read_targets(self.model, self.tok, prompts, targets)
        hold = statistics.fmean(reading.rank == 1 for reading in readings)
        return {"n": len(requests), "seconds": seconds, "hold": hold}

    def by_peer(self, spec: str, *, own_contexts: bool) -> Row:
        """The peer's own seconds: edits are taken back, and the same C is given to all."""
        peer = load_peer(spec)
        lengths = LENGTHS if own_contexts else None
        hparams = self.hparams.replace(context_template_length_params=lengths)
        contexts = tuple(contexts_for(self.model, self.tok, hparams))
        assert self.moment is not None
        c = self.moment.moment().double()
        c.diagonal().add_(self.moment.ridge() * c.diagonal().mean())
        seconds = []
        for request in self.requests[:N_PEER]:
            case = Case(self.model, self.tok, request, self.hparams, contexts, c)
            seconds.append(peer.edit(case).seconds["total"])
        return {"n": N_PEER, "seconds": statistics.median(seconds), "commit": peer.commit}


def _of_other_subjects(n: int) -> list[EditRequest]:
    """The first requests that have a subject each."""
    chosen: dict[str, EditRequest] = {}
    for raw in read_counterfact():
        request = record_of(raw).request
        chosen.setdefault(request.subject, request)
    return list(chosen.values())[:n]


WAYS: dict[str, Callable[[Bench], Row]] = {
    "edit, one by one": Bench.one_by_one,
    "edit_many, exact": partial(Bench.many, order="exact"),
    "edit_many, independent": partial(Bench.many, order="independent"),
    TWO: partial(Bench.many, order="independent", distributed=True),
}
ALL = (PEER, PEER_OF_FEW, *WAYS)


def one(way: str, peer: str | None) -> None:
    """One way in this process, or in two; the first prints its row."""
    warnings.simplefilter("ignore")
    if way in (PEER, PEER_OF_FEW):
        assert peer is not None
        print(json.dumps(Bench().by_peer(peer, own_contexts=way == PEER)))
        return
    if way == TWO:
        distributed.init_process_group("gloo")
    row = WAYS[way](Bench())
    if way != TWO or distributed.get_rank() == 0:
        print(json.dumps(row))


def run(way: str, peer: str) -> Row:
    """One way in a process of its own, on as many cores as any other."""
    command, cores = [sys.executable, "-m"], torch.get_num_threads()
    if way == TWO:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
        cores = cores // 2
    command += ["benchmarks.value.throughput", "--one", way, "--peer", peer]
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    print(way, row, flush=True)
    return row


def summary(way: str, rounds: Sequence[dict[str, Row]]) -> Row:
    """Medians over the rounds, and the ratios to both of the peer's ways."""
    seconds = [row[way]["seconds"] for row in rounds]
    found = {**rounds[0][way], "seconds": statistics.median(seconds), "of all rounds": seconds}
    for name, peer in (("times", PEER), ("times_same_contexts", PEER_OF_FEW)):
        ratios = [row[peer]["seconds"] / s for row, s in zip(rounds, seconds, strict=True)]
        found |= {name: statistics.median(ratios), f"{name}_of_all_rounds": ratios}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", choices=ALL, help="one way, in this process")
    parser.add_argument("--peer", metavar="kmeng01=PATH")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.peer)
        return
    rounds = [{way: run(way, args.peer) for way in ALL} for _ in range(args.rounds)]
    report = {
        "setting": setting(),
        "threads": torch.get_num_threads(),
        "ways": {way: summary(way, rounds) for way in ALL},
    }
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
