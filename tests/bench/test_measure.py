"""Comparing implementations: who agrees, who is refused, what a row says. Nothing is timed."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch
from benched import make_case
from helpers import same_bits, state
from rich.console import Console

from rome_fast.bench.case import GIVEN, IDENTITY
from rome_fast.bench.measure import measure
from rome_fast.bench.own import RomeFast
from rome_fast.bench.peak import peaks_in_children
from rome_fast.bench.peers import PeerEdit
from rome_fast.bench.table import quartiles, remarks, table_of
from rome_fast.bench.whole_model import WholeModel
from rome_fast.errors import InvalidArgumentError, RomeFastError


class FakePeer:
    """What rome_fast does, with one thing off."""

    name, commit = "fake", "abc1234"

    def __init__(self, seconds=1.0, scale=1.0, noise=0.0, c_modes=(GIVEN,), spoils=False, skips=0):
        self.c_modes = c_modes
        self.seconds, self.scale, self.noise = seconds, scale, noise
        self.spoils, self.skips = spoils, skips
        self.seen_c = []

    def edit(self, case):
        self.seen_c.append(case.second_moment)
        edit = RomeFast().edit(case)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(edit.dense.shape, generator=generator) * edit.dense.norm()
        dense = self.scale * (edit.dense + self.noise * noise / edit.dense.numel() ** 0.5)
        if self.spoils:
            next(case.model.parameters()).data[0, 0] += 1.0
        losses = edit.losses[self.skips :]
        return PeerEdit(dense, losses, {"total": self.seconds, "value": self.seconds / 2})


@pytest.fixture(autouse=True)
def no_children(monkeypatch):
    """A process of its own takes seconds; one test has one."""
    monkeypatch.setattr(
        "rome_fast.bench.measure.peaks_in_children", lambda case, peers: [7 for _ in peers]
    )


@pytest.fixture
def case(tiny, hparams):
    return make_case(tiny, hparams)


def test_the_whole_model_makes_the_same_edit(case):
    before = state(case.model)
    (comparison,) = measure(case, [WholeModel()], rounds=2)
    ours, whole = comparison.rows
    assert (ours.name, whole.name) == ("rome_fast", "whole model")
    assert whole.cosine >= 0.9999 and abs(whole.norm_ratio - 1) < 1e-3
    assert whole.matched and whole.n_steps == ours.n_steps == 4
    assert not comparison.stopped_early
    assert len(ours.seconds) == len(whole.seconds) == len(whole.times_ours) == 2
    assert {"key", "value", "update"} <= set(ours.phases) & set(whole.phases)
    assert same_bits(case.model, before)


@pytest.mark.parametrize("variant", ["both_keys", "mean_key", "prompt_key"])
def test_the_whole_model_knows_every_variant(gpt2, hparams, variant):
    case = make_case(gpt2, hparams)
    case = dataclasses.replace(case, hparams=case.hparams.replace(variant=variant))
    assert measure(case, [WholeModel()], rounds=1)[0].rows[1].cosine >= 0.9999


def test_ratios_are_of_neighbouring_runs(gpt2, hparams):
    (comparison,) = measure(make_case(gpt2, hparams), [FakePeer(3.0), FakePeer(5.0)], rounds=2)
    ours, three, five = comparison.rows
    assert len(ours.seconds) == 4  # one before each run of a peer
    assert three.seconds == (3.0, 3.0) and three.median == 3.0
    assert three.times_ours == (3.0 / ours.seconds[0], 3.0 / ours.seconds[2])
    assert five.times_ours == (5.0 / ours.seconds[1], 5.0 / ours.seconds[3])
    assert three.phases == {"value": 1.5} and three.commit == "abc1234" and three.peak_mib == 7


@pytest.mark.parametrize(
    "off, matched",
    [
        ({}, True),
        ({"scale": 2.0}, True),  # another length of the same update is told by norm_ratio
        ({"noise": 0.2}, False),
        ({"scale": -1.0}, False),
        ({"skips": 1}, False),
    ],
)
def test_matched_is_direction_and_steps(gpt2, hparams, off, matched):
    (comparison,) = measure(make_case(gpt2, hparams), [FakePeer(**off)], rounds=1)
    row = comparison.rows[1]
    assert row.matched is matched
    assert row.norm_ratio == pytest.approx(abs(off.get("scale", 1.0)), rel=0.05)
    assert comparison.stopped_early is bool(off.get("skips"))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_number_of_the_table_is_cut(gpt2, hparams, width):
    (comparison,) = measure(make_case(gpt2, hparams), [FakePeer(123.456)], rounds=2)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table_of(comparison))
    text = console.file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert all(word in text for word in ("rome_fast", "abc1234", "123", "cosine", "same"))


def test_a_search_that_stopped_early_is_told(gpt2, hparams):
    (comparison,) = measure(make_case(gpt2, hparams), [FakePeer(skips=1)], rounds=1)
    assert remarks(comparison)[-1] == "stopped early, of 4 steps: fake after 3"


def test_a_peer_without_second_moment_is_compared_with_the_identity(gpt2, hparams):
    able, unable = FakePeer(), FakePeer(c_modes=(IDENTITY,))
    case = make_case(gpt2, hparams)
    with_c, identity = measure(case, [able, unable], rounds=1)
    assert (with_c.c_mode, identity.c_mode) == ("given C", "C = I")
    assert len(with_c.rows) == len(identity.rows) == 2
    assert all(c is case.second_moment for c in able.seen_c) and unable.seen_c == [None, None]
    assert identity.rows[1].matched and identity.floor.solve == 0 < with_c.floor.solve


def test_a_peer_that_takes_a_second_moment_but_uses_none_is_compared_both_ways(gpt2, hparams):
    both, case = FakePeer(c_modes=(GIVEN, IDENTITY)), make_case(gpt2, hparams)
    with_c, identity = measure(case, [both], rounds=1)
    assert len(with_c.rows) == len(identity.rows) == 2
    assert [c is None for c in both.seen_c] == [False, False, True, True]


def test_one_comparison_where_all_take_the_identity(gpt2, hparams):
    case = make_case(gpt2, hparams, identity=True)
    (comparison,) = measure(case, [FakePeer(), FakePeer(c_modes=(IDENTITY,))], rounds=1)
    assert comparison.c_mode == "C = I" and len(comparison.rows) == 3


def test_a_peer_that_leaves_the_model_changed_is_named(gpt2, hparams):
    with pytest.raises(RomeFastError, match="peer 'fake' left the model's weights changed"):
        measure(make_case(gpt2, hparams), [FakePeer(spoils=True)], rounds=1)


def test_rounds_and_specs_are_checked(gpt2, hparams):
    case = make_case(gpt2, hparams)
    with pytest.raises(InvalidArgumentError, match="rounds must be 1 or more, got 0"):
        measure(case, rounds=0)
    with pytest.raises(InvalidArgumentError, match="nobody"):
        measure(case, ["nobody=there"], rounds=1)


def test_floor_fraction_is_the_floor_over_the_median(gpt2, hparams):
    (comparison,) = measure(make_case(gpt2, hparams), [FakePeer(4.0)], rounds=1)
    seconds = comparison.floor.flops / comparison.flops_per_s
    assert comparison.floor_fraction(comparison.rows[1]) == pytest.approx(seconds / 4.0)


@pytest.mark.exhaustive
def test_peak_memory_is_told_by_a_process_of_its_own(gpt2, hparams):
    case = make_case(gpt2, hparams)
    (peak,) = peaks_in_children(case, [RomeFast()])
    assert 0 < peak < 500


@pytest.mark.exhaustive
def test_a_child_that_fails_says_why(gpt2, hparams):
    case = make_case(gpt2, hparams)
    with pytest.raises(RomeFastError, match=r"'nobody=there'.*InvalidArgumentError.*nobody"):
        peaks_in_children(case, ["nobody=there"])


@pytest.mark.parametrize(
    "values, expected", [((), []), ((2.0,), [2.0, 2.0]), ((1.0, 2.0, 3.0, 4.0, 5.0), [2.0, 4.0])]
)
def test_quartiles(values, expected):
    assert quartiles(values) == expected
