"""Times value_loss against autograd through the same loss, at an edit's own shape.

Validated against float64 first. The peer is what a user would write: log_softmax in float32, a
gather, the KL, and torch.autograd.grad. One thread, by the CPU's clock, which other programs of a
busy machine change little. Save the committed results with
    pytest benchmarks/ops/bench_value_loss.py --benchmark-only --save-result value-loss-cpu
"""

import time

import pytest
import torch

from benchmarks.support.timing import WHY_NOT_NATIVE, random, timed
from rome_fast.ops import value_loss
from rome_fast.testing import assert_close

N_READS, KL_FACTOR = 21, 0.0625


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def by_autograd(logits, target_ids, init):
    """Loss of one edit and its gradient."""
    logits = logits.detach().requires_grad_()
    log_probs = logits.log_softmax(-1, dtype=init.dtype)
    reads, now = log_probs.split([len(target_ids), 1])
    nll = -reads.gather(-1, target_ids[:, None]).mean()
    loss = nll + KL_FACTOR * (now.exp() * (now - init)).sum()
    return loss, torch.autograd.grad(loss, logits)[0]


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("impl", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocabulary", [49152, 128256, 262144])
def test_value_loss(benchmark, vocabulary, dtype, impl):
    if impl == "native" and WHY_NOT_NATIVE:
        pytest.skip(f"native: {WHY_NOT_NATIVE}")
    logits = random(N_READS + 1, vocabulary, dtype=dtype)
    target_ids = torch.arange(N_READS)
    edit_of_read = torch.zeros(N_READS, dtype=torch.int64)
    init = random(1, vocabulary, seed=1).log_softmax(-1)

    def op():
        args = logits, target_ids, edit_of_read, init
        return value_loss(*args, kl_factor=KL_FACTOR, backend=impl)

    def peer():
        return by_autograd(logits, target_ids, init)

    loss, gradient = by_autograd(logits.double(), target_ids, init.double())
    found = op()
    assert_close(found[0][0], loss.detach())
    assert_close(found[1], gradient)
    what = {"vocabulary": vocabulary, "dtype": str(dtype).removeprefix("torch."), "impl": impl}
    clock = time.process_time
    timed(benchmark, op, rounds=30, beside=peer, clock=clock, beside_is="autograd", **what)
