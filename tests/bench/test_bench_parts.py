"""The parts of an edit: they add up to it, and looking leaves nothing behind."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import pytest
from benched import make_case
from helpers import same_bits, state
from rich.console import Console

from rome_fast import editor
from rome_fast.bench.measure import measure
from rome_fast.bench.own import RomeFast
from rome_fast.bench.parts import PARTS, Clock, measure_parts
from rome_fast.bench.table import parts_facts, parts_table
from rome_fast.value import graph
from rome_fast.value.objective import Objective
from rome_fast.value.optimize import SOLVERS
from rome_fast.value.search import Search


@pytest.fixture
def case(tiny, hparams, monkeypatch):
    monkeypatch.setattr(
        "rome_fast.bench.measure.peaks_in_children", lambda case, peers: [7 for _ in peers]
    )
    return make_case(tiny, hparams)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_part_is_seen_and_together_they_are_the_edit(case, solver):
    case = replace(case, hparams=case.hparams.replace(solver=solver, variant="both_keys"))
    clock = Clock(case)
    with clock.running():
        began = time.perf_counter()
        RomeFast().edit(case)
        clock.mark("rest")
        whole = time.perf_counter() - began
    assert set(clock.seconds) == set(PARTS)
    assert all(seconds > 0 for seconds in clock.seconds.values())
    assert sum(clock.seconds.values()) == pytest.approx(whole, rel=0.01)


def test_looking_leaves_nothing_behind(case):
    before = state(case.model)
    plain = (Search.logits, Search.__init__, Objective.__call__, graph.is_wanted)
    plain += (editor.read_targets, *(solver.step for solver in SOLVERS.values()))
    [compared] = measure(case, rounds=1)
    measure_parts(case, compared, rounds=1)
    after = (Search.logits, Search.__init__, Objective.__call__, graph.is_wanted)
    after += (editor.read_targets, *(solver.step for solver in SOLVERS.values()))
    assert after == plain
    assert same_bits(case.model, before)
    assert not case.model.get_output_embeddings()._forward_hooks


def test_a_table_has_a_line_for_each_and_the_floors_are_those_of_the_edit(case):
    [compared] = measure(case, rounds=1)
    parts = measure_parts(case, compared, rounds=1)
    assert sum(part.floor for part in parts.parts) == pytest.approx(compared.floor_seconds)
    assert 0 < parts.in_python < 1
    printed = io.StringIO()
    Console(file=printed, width=80).print(parts_table(parts))
    for part in parts.parts:
        assert part.name in printed.getvalue()
    facts = parts_facts(parts)
    assert list(facts["seconds"]) == list(PARTS)
