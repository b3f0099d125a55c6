"""Two processes share the searches of a window; both models get the edits of one process."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from processes import run_two
from tiny import tiny_gpt2

import rome_fast
from rome_fast.errors import InvalidArgumentError, NonFiniteError, RomeFastError
from rome_fast.value.window import KeyValueSearch

HERE = Path(__file__)

# What both the test and its processes run.
SETTINGS = {
    "hparams": rome_fast.RomeHparams(layers=[1], v_num_grad_steps=4, v_lr=0.3),
    "second_moment": "identity",
    "context_templates": ["{}", "He is a man. {}"],
    "order": "independent",
    "window": 3,
    "progress": False,
}
SUBJECTS = ["Steve Jobs", "Ada Lovelace", "Eiffel Tower", "Marie Curie", "LeBron James"]
REQUESTS = [{"prompt": "It is {}", "subject": s, "target_new": "river"} for s in SUBJECTS]


def weight_of(model):
    return model.transformer.h[1].mlp.c_proj.weight.detach()


def process(folder):
    """What torchrun starts."""
    from torch import distributed

    from rome_fast.moment.collect.ranks import torchrun_group

    with torchrun_group():
        rank = distributed.get_rank()
        model, tok = tiny_gpt2()
        before = weight_of(model).clone()
        told = [
            refusal(model, tok, REQUESTS[: 4 + rank]),
            refusal(model, tok, REQUESTS, one_cannot_search(rank)),
            refusal(model, tok, REQUESTS, one_computes_otherwise(rank)),
        ]
        undone = torch.equal(weight_of(model), before)
        results = rome_fast.edit_many(model, tok, REQUESTS, distributed=True, **SETTINGS)
        torch.save(
            {
                "weight": weight_of(model),
                "probs": [result.prob_after for result in results],
                "windows": [result.window for result in results],
                "told": told,
                "undone": undone,
            },
            f"{folder}/{rank}.pt",
        )


def refusal(model, tok, requests, trouble=None):
    try:
        with trouble or nullcontext():
            rome_fast.edit_many(model, tok, requests, distributed=True, **SETTINGS)
    except RomeFastError as error:
        return f"{type(error).__name__}: {error}"
    return "edited"


def one_cannot_search(rank):
    error = NonFiniteError("a loss of this process alone")
    return patch.object(KeyValueSearch, "find", side_effect=error) if rank else nullcontext()


def one_computes_otherwise(rank):
    """What is compared: everything before the edits, and the weights behind them."""
    of_all = ["the same"] if rank else ["the same", "the same"]
    return patch("rome_fast.edit.fingerprint", side_effect=[*of_all, "another"])


@pytest.mark.exhaustive
def test_two_processes_edit_as_one_does(tmp_path):
    run_two(HERE, tmp_path)
    model, tok = tiny_gpt2()
    alone = rome_fast.edit_many(model, tok, REQUESTS, **SETTINGS)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first["weight"], second["weight"])
    torch.testing.assert_close(first["weight"], weight_of(model), rtol=1e-4, atol=1e-6)
    for found in first, second:
        assert found["undone"]
        assert found["windows"] == [result.window for result in alone]
        assert found["probs"] == pytest.approx([r.prob_after for r in alone], rel=1e-3)
        differing, failed, apart = found["told"]
        assert "different models, requests or arguments" in differing
        assert failed == "NonFiniteError: a loss of this process alone"
        assert "have come to different weights" in apart


def test_the_exact_order_is_not_shared():
    model, tok = tiny_gpt2()
    with pytest.raises(InvalidArgumentError, match="each edit waits"):
        rome_fast.edit_many(model, tok, REQUESTS, distributed=True, second_moment="identity")


def test_a_process_group_is_needed():
    model, tok = tiny_gpt2()
    with pytest.raises(InvalidArgumentError, match="torchrun"):
        rome_fast.edit_many(model, tok, REQUESTS, distributed=True, **SETTINGS)


if __name__ == "__main__":
    process(sys.argv[1])
