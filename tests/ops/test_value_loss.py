"""value_loss against the same loss by autograd in float64, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from rome_fast import ops
from rome_fast.errors import InvalidArgumentError

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
KL_FACTOR = 0.7
# The CPU kernel reads a row in blocks of 1,024 words, in vectors of up to 16.
SHAPES = [((1,), 1), ((2,), 7), ((3, 1, 4), 101), ((1, 2), 1024), ((2, 1), 1025), ((1,), 3071)]


def sample(counts=(3, 1, 4), vocabulary=101, dtype=torch.float32, seed=0):
    """Logits, targets, edits of the reads, and log-probabilities to measure the KL from."""
    generator = torch.Generator().manual_seed(seed)
    edit_of_read = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    n_rows = len(edit_of_read) + len(counts)
    logits = 3 * torch.randn(n_rows, vocabulary, generator=generator, dtype=torch.float64)
    target_ids = torch.randint(vocabulary, (len(edit_of_read),), generator=generator)
    init = torch.randn(len(counts), vocabulary, generator=generator, dtype=torch.float64)
    init = init.log_softmax(-1).to(torch.float64 if dtype == torch.float64 else torch.float32)
    return logits.to(dtype), target_ids, edit_of_read, init


def reference(logits, target_ids, edit_of_read, init):
    """Losses and gradient, by autograd."""
    logits = logits.detach().double().requires_grad_()
    log_probs, n_reads = logits.log_softmax(-1), len(target_ids)
    nll = -log_probs[:n_reads].gather(1, target_ids[:, None])[:, 0]
    means = torch.stack([nll[edit_of_read == i].mean() for i in range(len(logits) - n_reads)])
    now = log_probs[n_reads:]
    init = now.detach() if init is None else init.double()
    losses = means + KL_FACTOR * (now.exp() * (now - init)).sum(-1)
    (gradient,) = torch.autograd.grad(losses.sum(), [logits])
    return losses.detach(), gradient


def loss(*args, **options):
    return ops.value_loss(*args, kl_factor=KL_FACTOR, **options)


@pytest.mark.covering("dtype,backend", "counts,vocabulary", "known")
@pytest.mark.parametrize("known", [True, False], ids=["later calls", "first call"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("counts", "vocabulary"), SHAPES)
def test_value_loss_matches_reference(backend, counts, vocabulary, dtype, known):
    logits, target_ids, edit_of_read, init = sample(counts, vocabulary, dtype)
    init = init if known else None
    losses, gradient, _, kept = loss(logits, target_ids, edit_of_read, init, backend=backend)
    expected, expected_gradient = reference(logits, target_ids, edit_of_read, init)
    tolerance = TOLERANCES[dtype]
    tight = tolerance if dtype == torch.float64 else 1e-5  # half precision is widened first
    torch.testing.assert_close(losses.double(), expected, rtol=tight, atol=tight)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=tolerance)
    assert gradient.dtype == dtype and gradient.shape == logits.shape
    if known:
        assert kept.shape == (0, vocabulary)
    else:
        now = logits[len(target_ids) :].double().log_softmax(-1)
        torch.testing.assert_close(kept.double(), now, rtol=tight, atol=tight)
        assert not gradient[len(target_ids) :].any(), "the KL's gradient is 0 where nothing moved"


def test_value_loss_of_rows_that_threads_share(backend):
    given = sample((3, 2), 262147)
    losses, gradient, *_ = loss(*given, backend=backend)
    expected, expected_gradient = reference(*given)
    # So long a sum of float32 loses 2e-5 in torch's own kernels where vectors are short (AVX2).
    torch.testing.assert_close(losses.double(), expected, rtol=5e-5, atol=1e-5)
    error, norm = (gradient - expected_gradient).norm(dim=-1), expected_gradient.norm(dim=-1)
    assert (error <= 1e-4 * norm).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_small_probabilities_are_right_in_themselves(backend, dtype):
    logits, target_ids, edit_of_read, init = sample((1,), 2500, dtype)
    logits[0] = torch.linspace(-80, 0, 2500, dtype=dtype)[torch.randperm(2500)]
    gradient = loss(logits, target_ids, edit_of_read, init, backend=backend)[1][0].double()
    others = torch.arange(2500) != target_ids[0]
    expected = logits[0].double().softmax(-1)[others]
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(gradient[others], expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("start", [-30000.0, 0.0, 30000.0])
def test_value_loss_of_logits_that_grow_along_the_row(backend, start):
    """The largest logit is the last of each block, and what is -inf comes before them all."""
    logits, target_ids, edit_of_read, init = sample((2,), 4000)
    logits[:] = start + torch.linspace(0, 60, 4000) + logits
    logits[:, :1500] = -torch.inf
    target_ids[:] = torch.tensor([3000, 3999])
    init[:, :1500] = -torch.inf
    losses, gradient, *_ = loss(logits, target_ids, edit_of_read, init, backend=backend)
    at = slice(1500, None)
    given = logits[:, at], target_ids - 1500, edit_of_read, init[:, at]
    expected, expected_gradient = reference(*given)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient[:, at].double(), expected_gradient, rtol=1e-4, atol=1e-5)
    assert not gradient[:, :1500].any()


def test_value_loss_says_whose_targets_are_all_the_likeliest(backend):
    logits, target_ids, edit_of_read, init = sample()
    logits[torch.arange(len(target_ids)), target_ids] = 50
    assert loss(logits, target_ids, edit_of_read, init, backend=backend)[2].tolist() == [True] * 3
    logits[1, target_ids[1]] = -50  # one of three reads of the first edit
    right = loss(logits, target_ids, edit_of_read, init, backend=backend)[2]
    assert right.tolist() == [False, True, True]


def test_value_loss_of_equal_logits_takes_the_first(backend):
    logits, target_ids, edit_of_read, init = sample((1, 1))
    logits[:2] = 1.0
    target_ids[0], target_ids[1] = 0, 1
    right = loss(logits, target_ids, edit_of_read, init, backend=backend)[2]
    assert right.tolist() == [True, False]


@pytest.mark.parametrize("before", [0, 1500, 2998])
def test_value_loss_of_equal_logits_far_apart(backend, before):
    logits, target_ids, edit_of_read, init = sample((1,), 3000)
    target_ids[0] = 2999
    logits[0, 2999] = 50
    assert loss(logits, target_ids, edit_of_read, init, backend=backend)[2].all()
    logits[0, before] = 50
    assert not loss(logits, target_ids, edit_of_read, init, backend=backend)[2].any()


def test_value_loss_of_a_word_that_cannot_come(backend):
    """Some models mask words with -inf; as a target it costs everything, elsewhere nothing."""
    logits, target_ids, edit_of_read, _ = sample((1, 1))
    logits[0, target_ids[0]] = -torch.inf
    logits[1, (target_ids[1] + 1) % logits.shape[1]] = -torch.inf
    logits[2:, 3] = -torch.inf
    losses, gradient, _, init = loss(logits, target_ids, edit_of_read, None, backend=backend)
    again = loss(logits, target_ids, edit_of_read, init, backend=backend)
    torch.testing.assert_close(again[0], losses)
    assert again[1][2:].abs().max() < 1e-6
    assert losses[0] == torch.inf and losses[1].isfinite() and gradient[1].isfinite().all()


def with_reads_of_nobody(given, n):
    """The same with ``n`` reads more, of an edit that is not there."""
    logits, target_ids, edit_of_read, init = given
    n_reads, n_edits = len(target_ids), len(init)
    more = 5 * torch.randn(n, logits.shape[1], dtype=torch.float64).to(logits)
    return (
        torch.cat([logits[:n_reads], more, logits[n_reads:]]),
        torch.cat([target_ids, torch.randint(logits.shape[1], (n,))]),
        torch.cat([edit_of_read, torch.full((n,), n_edits)]),
        init,
    )


@pytest.mark.covering
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("known", [True, False], ids=["later calls", "first call"])
def test_reads_of_nobody_change_nothing(backend, dtype, known):
    given = sample(vocabulary=1030, dtype=dtype)
    more = with_reads_of_nobody(given, 5)
    options = {"backend": backend}
    expected = loss(*given[:3], given[3] if known else None, **options)
    losses, gradient, right, kept = loss(*more[:3], more[3] if known else None, **options)
    n_reads = len(given[1])
    assert not gradient[n_reads : n_reads + 5].any()
    counted = torch.cat([gradient[:n_reads], gradient[n_reads + 5 :]])
    for found, same in zip((losses, counted, right, kept), expected, strict=True):
        torch.testing.assert_close(found, same, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("row", [0, 8])
@pytest.mark.parametrize("word", [0, 1500, 2999])
def test_value_loss_of_nan_is_nan_for_its_own_edit_alone(backend, row, word):
    logits, target_ids, edit_of_read, init = sample(vocabulary=3000)
    logits[row, word] = torch.nan
    losses = loss(logits, target_ids, edit_of_read, init, backend=backend)[0]
    assert losses.isnan().tolist() == [True, False, False]


def test_value_loss_takes_strided_rows(backend):
    logits, target_ids, edit_of_read, init = sample()
    wide = torch.full((2 * len(logits), 150), torch.nan)
    wide[::2, 7:108] = logits
    found = loss(wide[::2, 7:108], target_ids, edit_of_read, init, backend=backend)
    for a, b in zip(found, loss(logits, target_ids, edit_of_read, init), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("known", [True, False])
def test_value_loss_is_registered_right(known):
    logits, target_ids, edit_of_read, init = sample()
    init = init if known else None
    args = (logits, target_ids, edit_of_read, init, 0.5)
    torch.library.opcheck(torch.ops.rome_fast.value_loss.default, args)


@pytest.mark.covering
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(8, 101)}, "logits must have a row for each of 8 target_ids"),
        ({"logits": torch.zeros(11, 101).int()}, "logits must be one of"),
        ({"target_ids": torch.zeros(8)}, "target_ids must be one of int64"),
        ({"edit_of_read": torch.zeros(7).long()}, "edit_of_read must have shape"),
        ({"log_probs_init": torch.zeros(3, 101).double()}, "log_probs_init must be one of float32"),
        ({"log_probs_init": torch.zeros(2, 101)}, "log_probs_init must have shape"),
        ({"kl_factor": float("nan")}, "kl_factor must be finite"),
    ],
)
def test_value_loss_refuses(backend, change, message):
    names = ("logits", "target_ids", "edit_of_read", "log_probs_init")
    arguments = dict(zip(names, sample(), strict=True)) | {"kl_factor": 0.5} | change
    kl_factor = arguments.pop("kl_factor")
    with pytest.raises(InvalidArgumentError, match=message):
        ops.value_loss(*arguments.values(), kl_factor=kl_factor, backend=backend)
