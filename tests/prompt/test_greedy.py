"""Rows that have ended are taken out of the batch; each row is what it would be alone."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, lively_family
from structures import STRUCTURES
from tiny import tiny_gpt2

from rome_fast.evaluate.scoring import Trial, tried
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.greedy import _Forward, greedy_tokens
from rome_fast.types import RankOneUpdate

PROMPTS = ("He is", "The Eiffel Tower is in the city of", "Ada", "The capital of Japan is", "It")
LENGTHS = (1, 9, 2, 10, 4)


def ended(rows):
    """Each row is over when it is as long as its place in LENGTHS says."""
    ends = [row[:n] for row, n in zip(rows, LENGTHS, strict=True)]
    return ends, lambda said: list(said) in ends


@pytest.mark.covering(family=STRUCTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_taken_out_as_they_end(family):
    model, (_, tok) = lively_family(family, 420), tiny_gpt2()
    prompts = [tok(prompt)["input_ids"] for prompt in PROMPTS]
    told = []
    alone = [greedy_tokens(model, tok, [prompt], 10)[0] for prompt in prompts]
    _, is_over = ended(alone)
    found = greedy_tokens(model, tok, prompts, 10, is_over, told.append)
    for row, whole in zip(found, alone, strict=True):
        assert row == whole[: len(row)]
        assert any(is_over(row[:n]) for n in range(len(row) + 1))
    assert told and max(told[0].tolist()) < len(prompts)
    assert sum(map(len, found)) < sum(map(len, alone))


def test_updates_stay_with_their_rows(tiny):
    model, tok = tiny
    projection = ModelSpec.of(model).down_projection(1)
    d_value, d_key = projection.d_value, projection.d_key
    draws = torch.Generator().manual_seed(3)
    updates = [
        RankOneUpdate(
            torch.randn(d_key, generator=draws) / d_key**0.5,
            20 * torch.randn(d_value, generator=draws),
            projection.weight_layout,
        )
        for _ in PROMPTS
    ]
    prompts = [tok(prompt)["input_ids"] for prompt in PROMPTS]
    trial = Trial(projection, updates, range(len(prompts)))
    alone, told = [], []
    for i, prompt in enumerate(prompts):
        with tried(trial, [i]):
            alone += greedy_tokens(model, tok, [prompt], 10)
    ends, is_over = ended(alone)

    with tried(trial, range(len(prompts))) as narrow:

        def narrowed(rows):
            told.append(rows.tolist())
            narrow(rows)

        found = greedy_tokens(model, tok, prompts, 10, is_over, narrowed)
    assert told and [row[: len(e)] for row, e in zip(found, ends, strict=True)] == ends
    unedited = greedy_tokens(model, tok, prompts, 10)
    assert all(a != b for a, b in zip(alone, unedited, strict=True))


def test_what_cannot_be_taken_apart_goes_on_whole(tiny, monkeypatch):
    model, tok = tiny
    prompts = [tok(prompt)["input_ids"] for prompt in PROMPTS]
    wanted = greedy_tokens(model, tok, prompts, 10)

    monkeypatch.setattr(_Forward, "keep", lambda self, rows: False)
    told = []
    found = greedy_tokens(model, tok, prompts, 10, ended(wanted)[1], told.append)
    assert not told and len({len(row) for row in found}) == 1
    assert all(row == whole[: len(row)] for row, whole in zip(found, wanted, strict=True))
