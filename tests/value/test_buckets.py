"""Buckets: what they hold, and batches that are filled up to them."""

from __future__ import annotations

import pytest
import torch
from prepared import random_edit

from rome_fast.value.batch import EditBatch
from rome_fast.value.buckets import Buckets, filled

SIZES = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]


@pytest.mark.parametrize("unit", [1, 8, 16])
def test_a_bucket_is_the_least_that_holds_it(unit):
    for n in range(1, unit * SIZES[-1] + 1):
        assert filled(n, unit) == min(unit * size for size in SIZES if unit * size >= n)


def test_nothing_stays_nothing_and_without_a_unit_all_stays_as_it_is():
    assert filled(0, 16) == 0
    assert [filled(n, 0) for n in range(40)] == [*range(40)]


def test_rows_near_the_last_position_are_not_filled_up():
    buckets = Buckets(before=16, columns=8)
    assert buckets.within(666, 1024) == buckets == buckets.within(10**6, None)
    assert buckets.within(668, 1024) == Buckets()
    for before in range(667):
        assert filled(before, 16) + filled(666 - before, 8) <= 1024


def test_a_filled_batch_is_the_exact_one_and_more():
    edits = [random_edit(seed, [0, 3, 7, 1], 2) for seed in range(5)]
    exact, batch = EditBatch.of(edits), EditBatch.of(edits, Buckets(edits=1, reads=16))
    n_reads = len(exact.target_ids)
    assert (batch.n_edits, batch.n_rows) == (6, 6 * 4)
    assert torch.equal(batch.input_ids[:20], exact.input_ids)
    assert torch.equal(batch.input_ids[20:], exact.input_ids[16:])
    assert torch.equal(batch.target_ids[:n_reads], exact.target_ids)
    assert torch.equal(batch.edit_of_read[:n_reads], exact.edit_of_read)
    assert len(batch.target_ids) == filled(6 * n_reads // 5, 16)
    assert batch.edit_of_read[6 * n_reads // 5 :].eq(batch.n_edits).all()
    kl = batch.read_rows[len(batch.target_ids) :]
    assert torch.equal(kl, torch.arange(6) * 4 + 3), "the KL's row of every request is the last"
    assert torch.equal(batch.read_positions[len(batch.target_ids) :], batch.lookup_idx[kl])
