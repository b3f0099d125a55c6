"""The shortened forward against the whole one in every family: logits, gradients, no traces."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, VOCABULARY
from prepared import prepared, two_edits

from rome_fast.model.spec import ModelSpec
from rome_fast.value.batch import EditBatch
from rome_fast.value.buckets import Buckets
from rome_fast.value.search import Search, WholeModel
from rome_fast.value.suffix_forward import SuffixForward

# A norm or a factor lies between the MLP and the end of the block.
BENT = ("Gemma2", "Gemma3", "Olmo2", "Granite")


def logits_and_gradient(way, deltas):
    deltas = deltas.clone().requires_grad_()
    logits = way.logits(deltas)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    return logits, *torch.autograd.grad((logits * weights).sum(), [deltas])


@pytest.mark.covering
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_whole_model(family, layer, device):
    """Also where rows are filled up, as they are on a GPU."""
    batch = two_edits(Buckets.of(device))
    model, projection, first = prepared(family, layer, batch)
    suffix = SuffixForward.of(ModelSpec.of(model), projection, batch, first)
    assert suffix.n_silent == layer + (family not in BENT)
    whole = WholeModel(ModelSpec.of(model), projection, batch)
    deltas = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    for scale in (0.0, 1.0):
        found, expected = (logits_and_gradient(way, scale * deltas) for way in (suffix, whole))
        for a, b in zip(found, expected, strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()
    torch.testing.assert_close(first.logits, whole.logits(0 * deltas), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["GPT2", "Gemma2", "Mpt", "Mistral"])
def test_a_request_that_has_ended_leaves(family):
    batch = two_edits()
    model, projection, first = prepared(family, 1, batch)
    deltas = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    whole = WholeModel(ModelSpec.of(model), projection, batch).keep([1])
    suffix = SuffixForward.of(ModelSpec.of(model), projection, batch, first).keep([1])
    assert suffix.batch.n_rows == 3
    torch.testing.assert_close(
        suffix.logits(deltas[1:]), whole.logits(deltas[1:]), atol=1e-5, rtol=0
    )
    search = Search(ModelSpec.of(model), projection, batch, first)
    search.logits(0 * deltas)
    search.keep([0])
    alone = EditBatch.of(batch.edits[:1])
    expected = WholeModel(ModelSpec.of(model), projection, alone).logits(deltas[:1])
    torch.testing.assert_close(search.logits(deltas[:1]), expected, atol=1e-5, rtol=0)


def test_only_tokens_from_the_lookup_on_run_and_blocks_below_do_not():
    batch = two_edits()
    model, projection, first = prepared("GPT2", 1, batch)
    suffix, shapes = SuffixForward.of(ModelSpec.of(model), projection, batch, first), []
    for block in model.transformer.h:
        block.mlp.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
    model.lm_head.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
    suffix.logits(torch.zeros(2, 32))
    longest = int((batch.read_positions - batch.lookup_idx[batch.read_rows]).max()) + 1
    assert shapes == [(7, longest, 32), (1, len(batch.read_rows), VOCABULARY)]


def test_the_model_is_itself_afterwards_also_after_an_error():
    batch = two_edits()
    model, projection, first = prepared("Llama", 2, batch)
    before = model(input_ids=batch.input_ids).logits
    own = model.model.layers[0].forward
    model.model.layers[0].forward = own  # as accelerate's hooks do
    suffix = SuffixForward.of(ModelSpec.of(model), projection, batch, first)
    handle = model.model.norm.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        suffix.logits(torch.zeros(2, 32))
    handle.remove()
    assert vars(model.model.layers[0])["forward"] is own
    assert "forward" not in vars(model.model.layers[1])
    assert torch.equal(model(input_ids=batch.input_ids).logits, before)
