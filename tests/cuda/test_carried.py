"""How tests of the kernels carry their tensors to a GPU and back; here the CPU stands for it."""

from __future__ import annotations

import torch
from carried import OnCard


def test_storages_come_back_whole_with_what_was_written():
    there = OnCard("cpu")
    buffer = torch.full((9, 12), 7.0, dtype=torch.float64)
    keys = torch.randn(5, 4, dtype=torch.float64)
    expected = buffer.clone()
    torch.ops.rome_fast.second_moment_update_(expected[1::2, 1::3], keys, None)
    there.second_moment_update_(buffer[1::2, 1::3], keys, None)
    assert torch.equal(buffer, expected) and buffer[1, 1] != 7


def test_views_of_one_buffer_meet_there_as_here():
    buffer = torch.zeros(3 * 4 + 3 + 4, dtype=torch.float32)
    weight, v, u = buffer[:12].view(3, 4), buffer[12:15], buffer[15:]
    u.fill_(2)
    v.fill_(3)
    OnCard("cpu").rank_one_update_.default(weight, u, v)
    assert (weight == 6).all() and (u == 2).all() and (v == 3).all()


def test_results_and_empty_tensors():
    key = torch.randn(4)
    args = torch.zeros(0, 4), None, key, key, torch.zeros(0), 0.0, 1.0
    u, v, _, norm, _ = OnCard("cpu").rank_one_solve_apply_(*args)
    assert torch.allclose(u, key / key.norm()) and v.shape == (0,) and norm == 0
