"""The shortened forward against the whole one: logits, gradients, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, VOCABULARY, tiny_family

from rome_fast.models import ModelSpec
from rome_fast.tail import tail_forward

READ_AT = torch.tensor([0, 0, 1, 2]), torch.tensor([3, 6, 1, 0])


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(VOCABULARY, (3, 7), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 4:] = attention_mask[2, 2:] = 0
    return input_ids, attention_mask


def moved_by(projection, delta):
    """The matrix' output moved by delta at position 1 of every row."""

    def move(module, args, output):
        offset = torch.zeros(3, 7, delta.numel()).index_fill(1, torch.tensor([1]), 1.0) * delta
        return output + offset.view_as(output)

    return projection.module.register_forward_hook(move)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_whole_model(family, layer, batch):
    model = tiny_family(family).requires_grad_(False)
    projection = ModelSpec.of(model).down_projection(layer)
    delta = torch.linspace(-0.5, 0.5, 32, requires_grad=True)
    weights = torch.linspace(-1, 1, 4 * VOCABULARY).reshape(4, VOCABULARY)
    found = []
    with tail_forward(model, projection, *batch, READ_AT) as tail:
        handle = moved_by(projection, delta)
        for _ in range(2):
            logits = tail()
            found.append((logits, *torch.autograd.grad((logits * weights).sum(), [delta])))
    expected = model(input_ids=batch[0], attention_mask=batch[1]).logits[READ_AT]
    gradient = torch.autograd.grad((expected * weights).sum(), [delta])[0]
    handle.remove()
    assert gradient.norm() > 0
    for logits, tail_gradient in found:
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(tail_gradient, gradient, rtol=1e-4, atol=1e-6)


def test_blocks_below_run_once_and_the_head_sees_what_is_read(batch):
    model = tiny_family("GPT2")
    runs, seen = [], []
    attention, head = model.transformer.h[1].attn, model.lm_head
    attention.register_forward_hook(lambda *_: runs.append(1))
    head.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    with tail_forward(model, ModelSpec.of(model).down_projection(2), *batch, READ_AT) as tail:
        for _ in range(3):
            tail()
    assert len(runs) == 1 and seen == [(1, 4, VOCABULARY)] * 3


def test_the_model_is_itself_afterwards_also_after_an_error(batch):
    model = tiny_family("Llama")
    before = model(input_ids=batch[0]).logits
    own = model.model.layers[0].forward
    model.model.layers[0].forward = own  # as accelerate's hooks do
    projection = ModelSpec.of(model).down_projection(2)
    with (
        pytest.raises(ZeroDivisionError),
        tail_forward(model, projection, *batch, READ_AT) as tail,
    ):
        tail()
        raise ZeroDivisionError
    assert vars(model.model.layers[0])["forward"] is own
    assert "forward" not in vars(model.model.layers[1])
    assert torch.equal(model(input_ids=batch[0]).logits, before)
