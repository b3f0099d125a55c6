"""The value optimisation: steps, early stop, clamp, and gradients that reach only the offset."""

from __future__ import annotations

import pytest
import torch
from helpers import CONTEXTS, REQUEST

from rome_fast import EditRequest
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.encode import encode
from rome_fast.value.batch import EditBatch
from rome_fast.value.first_pass import run_first_pass
from rome_fast.value.key import mean_keys
from rome_fast.value.optimize import optimize_values


@pytest.fixture
def prepared(tiny):
    model, tok = tiny
    model.eval().requires_grad_(False)
    spec = ModelSpec.of(model)
    projection = spec.down_projection(1)
    batch = EditBatch.of([encode(tok, EditRequest.parse(REQUEST), CONTEXTS)])
    first = run_first_pass(spec, projection, batch)
    [keys] = mean_keys(projection, batch, first)
    return spec, projection, batch, first, keys.value_init[None]


def optimize_value(*arguments):
    [value] = optimize_values(*arguments)
    assert not value.obstacle
    return value


def test_steps_count_forwards(prepared, hparams):
    value = optimize_value(*prepared, hparams.replace(v_num_grad_steps=3))
    assert len(value.losses) == 3
    one = optimize_value(*prepared, hparams.replace(v_num_grad_steps=1))
    assert len(one.losses) == 1 and not one.value_delta.any()


def test_stops_when_found(prepared, hparams):
    value = optimize_value(*prepared, hparams.replace(v_num_grad_steps=200, kl_factor=0.0))
    assert len(value.losses) < 200
    assert value.losses[-1] < hparams.v_stop_loss <= min(value.losses[:-1])


def test_a_low_mean_does_not_hide_a_context(prepared, hparams):
    """Far above the threshold's usual place, the mean is low long before all contexts agree."""
    spec, projection, batch, *_ = prepared
    model = spec.model
    [tokens] = batch.edits
    settings = hparams.replace(v_num_grad_steps=60, v_lr=0.3, kl_factor=0.0, v_stop_loss=5.0)
    early = optimize_value(*prepared, settings.replace(variant="original"))
    late = optimize_value(*prepared, settings)
    assert late.losses[: len(early.losses)] == early.losses
    assert len(late.losses) > len(early.losses)

    def says_target(delta):
        shift = projection.module.register_forward_hook(
            lambda module, args, out: out.index_put(
                (torch.arange(len(out)), tokens.lookup_idx), delta, accumulate=True
            )
        )
        with torch.no_grad():
            logits = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
        shift.remove()
        rows = torch.arange(tokens.n_contexts)
        return bool((logits[rows, tokens.target_start].argmax(-1) == tokens.target_ids[0]).all())

    assert says_target(late.value_delta) and not says_target(early.value_delta)


def test_offset_stays_in_the_ball(prepared, hparams):
    radius = 0.5 * prepared[4].norm()
    value = optimize_value(*prepared, hparams.replace(clamp_norm_factor=0.5))
    torch.testing.assert_close(value.value_delta.norm(), radius)


def test_first_loss_is_the_models_own(prepared, hparams):
    spec, _, batch, *_ = prepared
    model = spec.model
    [tokens] = batch.edits
    value = optimize_value(*prepared, hparams.replace(v_num_grad_steps=1))
    nll = []
    for row in range(tokens.n_contexts):
        length = int(tokens.attention_mask[row].sum())
        with torch.no_grad():
            logits = model(input_ids=tokens.input_ids[row : row + 1, :length]).logits[0].double()
        start = int(tokens.target_start[row])
        log_probs = logits.log_softmax(-1)
        nll.append(-sum(log_probs[start + i, t] for i, t in enumerate(tokens.target_ids)))
    expected = float(sum(nll)) / len(nll) / len(tokens.target_ids)
    assert value.losses[0] == pytest.approx(expected, rel=1e-4)


def test_kl_term_and_decay_hold_the_offset_back(prepared, hparams):
    free = optimize_value(*prepared, hparams.replace(kl_factor=0.0, v_weight_decay=0.0))
    held = optimize_value(*prepared, hparams.replace(kl_factor=0.0, v_weight_decay=50.0))
    assert held.value_delta.norm() < free.value_delta.norm()
    first, second = (
        optimize_value(*prepared, hparams.replace(kl_factor=f, v_num_grad_steps=4)).losses
        for f in (0.0, 5.0)
    )
    assert first[0] == pytest.approx(second[0], rel=1e-6)
    assert second[1] > first[1]
