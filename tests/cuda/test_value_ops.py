"""value_loss and value_step_ of the CUDA library against the torch defaults in float64."""

from __future__ import annotations

import pytest
import torch
from ops.test_value_loss import (
    DTYPES,
    KL_FACTOR,
    TOLERANCES,
    reference,
    sample,
    with_reads_of_nobody,
)
from ops.test_value_step import MAX_STEPS, SETTINGS, balls, drawn, state

from rome_fast.ops import _default
from rome_fast.testing import CanaryBuffer

# The last two: more words than a block has under way at once, and an edit of more than 32 reads.
SIZES = [((1,), 1), ((2,), 7), ((3, 1, 4), 1000), ((1, 5), 4099), ((1,), 8193), ((33,), 65)]


@pytest.fixture(params=["", "naive"], ids=["fast", "naive"], autouse=True)
def kernel(request, monkeypatch):
    monkeypatch.setenv("ROME_FAST_CUDA_KERNEL", request.param)


@pytest.mark.covering("dtype,kernel", "counts,vocabulary", "known", "emulated")
@pytest.mark.parametrize("known", [True, False], ids=["later calls", "first call"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("counts", "vocabulary"), SIZES)
def test_value_loss_matches_reference(emulated, counts, vocabulary, dtype, known):
    logits, target_ids, edit_of_read, init = sample(counts, vocabulary, dtype, seed=vocabulary)
    init = init if known else None
    losses, gradient, right, kept = emulated.value_loss(
        logits, target_ids, edit_of_read, init, KL_FACTOR
    )
    expected, expected_gradient = reference(logits, target_ids, edit_of_read, init)
    tolerance = TOLERANCES[dtype]
    tight = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(losses.double(), expected, rtol=tight, atol=tight)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=tolerance)
    default = _default.value_loss_default(logits, target_ids, edit_of_read, init, KL_FACTOR)
    assert torch.equal(right, default[2])
    torch.testing.assert_close(kept, default[3], rtol=tight, atol=tight)


@pytest.mark.covering
def test_value_loss_of_equal_and_impossible_and_undefined_logits(emulated):
    logits, target_ids, edit_of_read, _ = sample((1, 1, 1, 2), vocabulary=300)
    logits[:2] = 1.0
    target_ids[0], target_ids[1] = 0, 1  # of equals the first is the likeliest
    logits[2, target_ids[2]] = -torch.inf
    logits[3, 7] = torch.nan
    logits[5:, 9] = -torch.inf
    init = None
    for _ in range(2):
        args = logits, target_ids, edit_of_read, init, KL_FACTOR
        losses, gradient, right, kept = emulated.value_loss(*args)
        expected = _default.value_loss_default(*args)
        assert right.tolist() == [True, False, False, False]
        torch.testing.assert_close(losses, expected[0], equal_nan=True)
        finite = [0, 1, 4, 5, 6, 7, 8]
        torch.testing.assert_close(gradient[finite], expected[1][finite])
        init = kept if init is None else init


@pytest.mark.covering("dtype,kernel", "emulated")
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_of_nobody_change_nothing(emulated, dtype):
    given = sample(vocabulary=1030, dtype=dtype)
    expected = emulated.value_loss(*given, KL_FACTOR)
    losses, gradient, right, _ = emulated.value_loss(*with_reads_of_nobody(given, 5), KL_FACTOR)
    n_reads = len(given[1])
    assert not gradient[n_reads : n_reads + 5].any()
    counted = torch.cat([gradient[:n_reads], gradient[n_reads + 5 :]])
    for found, same in zip((losses, counted, right), expected[:3], strict=True):
        assert torch.equal(found, same), "the same bits"


@pytest.mark.parametrize("shift", [0.0, -100.0])
def test_value_loss_keeps_the_digits_of_a_small_kl(emulated, shift, request):
    """Logits may lie far from 0, as GPT-2's do, while what is sought are small differences."""
    if "naive" in request.node.callspec.id:
        pytest.skip("one long sum a row is as inexact as it is")
    logits, target_ids, edit_of_read, _ = sample((2,), vocabulary=20_000)
    logits += shift
    noise = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(1))
    init = (logits[2:].double() + 0.01 * noise).log_softmax(-1).float()
    gradient = emulated.value_loss(logits, target_ids, edit_of_read, init, KL_FACTOR)[1]
    expected = reference(logits, target_ids, edit_of_read, init)[1]
    error = (gradient.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 5e-5


@pytest.mark.covering
def test_value_loss_takes_strided_rows(emulated):
    logits, target_ids, edit_of_read, init = sample()
    wide = torch.full((2 * len(logits), 150), torch.nan)
    wide[::2, 7:108] = logits
    expected = emulated.value_loss(logits, target_ids, edit_of_read, init, KL_FACTOR)
    for strided in (wide[::2, 7:108], logits.T.contiguous().T):
        found = emulated.value_loss(strided, target_ids, edit_of_read, init, KL_FACTOR)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b), "the same bits"


@pytest.mark.covering("dtype,kernel", "emulated")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_step_is_the_default(emulated, dtype):
    """Through a whole search: a ball that is reached, one that is found, one that is not finite."""
    generator = torch.Generator().manual_seed(0)
    now, expected, limits = state(dtype), state(torch.float64), balls(dtype)
    for i in range(MAX_STEPS + 2):
        given = gradients, losses, right = drawn(generator, dtype)
        if i == 2:
            losses[0] = 0.01
        if i == 3:
            losses[2], gradients[2] = float("nan"), float("nan")
        emulated.value_step_(*now.values(), *given, *limits, *SETTINGS.values())
        wide = (gradients.double(), losses.double(), right, *(x.double() for x in limits))
        _default.value_step_default(*expected.values(), *wide, *SETTINGS.values())
        assert torch.equal(now["active"], expected["active"])
        assert torch.equal(now["n_steps"], expected["n_steps"])
        tolerance = 1e-12 if dtype == torch.float64 else 2e-5
        for name in ("deltas", "mean", "square", "history"):
            options = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
            torch.testing.assert_close(now[name].double(), expected[name], **options)
    assert not now["active"].any()


@pytest.mark.covering("name", "transposed,kernel", "emulated")
@pytest.mark.parametrize("name", ["deltas", "mean", "square", "history"])
@pytest.mark.parametrize("transposed", [False, True])
def test_value_step_honours_strides(emulated, name, transposed):
    generator = torch.Generator().manual_seed(4)
    plain, strided, limits, given = state(), state(), balls(), drawn(generator)
    buffer = CanaryBuffer(strided[name], transposed)
    strided[name] = buffer.view
    for now in (plain, strided):
        emulated.value_step_(*now.values(), *given, *limits, *SETTINGS.values())
    buffer.assert_intact()
    for key, tensor in plain.items():
        torch.testing.assert_close(strided[key], tensor, rtol=0, atol=0, equal_nan=True)
