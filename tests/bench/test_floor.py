"""The floor's counts against sums done by hand on the miniature models."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rome_fast.bench.floor import floor_of, gemm_rate
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.encode import TokenizedEdit
from rome_fast.prompt.ids import pad_right

D = 64
# Weights of one block: attention in, attention out, MLP up (and gate), MLP down.
BLOCK = {
    "gpt2": 64 * 192 + 64 * 64 + 64 * 256 + 256 * 64,
    "llama": 64 * (64 + 32 + 32) + 64 * 64 + 2 * 64 * 176 + 176 * 64,
}


def tokens_by_hand():
    """Contexts of 3 and 5 tokens looked up at 1 and 2, a KL row of 4 looked up at 1."""
    input_ids, attention_mask = pad_right([[1] * 3, [1] * 5, [1] * 4])
    return TokenizedEdit(
        input_ids=input_ids,
        attention_mask=attention_mask,
        lookup_idx=torch.tensor([1, 2, 1]),
        target_ids=torch.tensor([7, 8]),
        target_start=torch.tensor([1, 3]),
        n_contexts=2,
        prompt_row=0,
        subject_token="x",
        target_tokens=("a", "b"),
    )


def floor_by_hand(model, layer=1, n_steps=3, tokens=None, identity=False):
    spec = ModelSpec.of(model)
    return floor_of(
        spec, spec.down_projection(layer), tokens or tokens_by_hand(), n_steps, identity
    )


def test_forward_runs_every_real_token_through_every_block(tiny):
    model, _ = tiny
    # 12 tokens; pairs of the causal triangles 1+2+3, 1+..+5, 1+..+4, four flops a channel each.
    block = 2 * BLOCK[model.config.model_type] * 12 + 4 * D * (6 + 15 + 10)
    assert floor_by_hand(model).forward == 4 * block


def test_loop_runs_what_an_offset_can_change(tiny):
    model, _ = tiny
    floor = floor_by_hand(model)
    # Positions 1, 2 of the first row, 2, 3, 4 of the second, the lookup alone of the KL row.
    assert floor.loop_tokens == 2 + 3 + 1
    block = 2 * BLOCK[model.config.model_type] * 6 + 4 * D * ((2 + 3) + (3 + 4 + 5) + 2)
    # Two blocks above layer 1; three forwards and two backwards.
    assert floor.loop == 5 * 2 * block


def test_head_solve_and_update(gpt2):
    model, tok = gpt2
    floor = floor_by_hand(model)
    # Two target tokens in two contexts, and the KL position.
    assert floor.head == 5 * 2 * 5 * D * len(tok)
    assert floor.solve == 2 * 256 * 256
    assert floor.update == 2 * 256 * 64
    assert floor.flops == floor.forward + floor.loop + floor.head + floor.solve + floor.update
    assert floor.seconds(floor.flops / 2) == 2.0


def test_nothing_is_solved_for_the_identity(gpt2):
    given, identity = (floor_by_hand(gpt2[0], identity=x) for x in (False, True))
    assert identity == dataclasses.replace(given, solve=0)


def test_no_loop_above_the_last_block(tiny):
    assert floor_by_hand(tiny[0], layer=3).loop == 0


def test_padding_and_a_further_row_of_the_bare_prompt_cost_the_loop_nothing(gpt2):
    tokens = tokens_by_hand()
    wider = pad_right([[1] * 3, [1] * 5, [1] * 4, [1] * 9])
    with_prompt = dataclasses.replace(
        tokens,
        input_ids=wider[0],
        attention_mask=wider[1],
        lookup_idx=torch.tensor([1, 2, 1, 4]),
        prompt_row=3,
    )
    alone, beside = floor_by_hand(gpt2[0]), floor_by_hand(gpt2[0], tokens=with_prompt)
    assert beside.loop == alone.loop and beside.loop_tokens == alone.loop_tokens
    assert beside.forward - alone.forward == 4 * (2 * BLOCK["gpt2"] * 9 + 4 * D * 45)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gemm_rate_is_flops_over_the_best_seconds(monkeypatch, dtype):
    clock = iter([0.0, 9.0, 10.0, 14.0, 20.0, 22.0, 30.0, 33.0])  # a slow first one, 4, 2 and 3 s
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert gemm_rate(3, 4, 5, dtype, repeats=3) == 2 * 3 * 4 * 5 / 2
