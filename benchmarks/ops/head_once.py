"""Compares the output head, read twice a step of the search, with one that is read once.

    python -m benchmarks.ops.head_once --out benchmarks/results/value-loss-head-cpu.json

Twice is what the library does: logits, `value_loss`, and the gradient back through the matrix.
Once is a softmax computed while the vocabulary goes by in chunks, as in flash attention (Dao 2022)
and cut cross-entropy (Wijmans 2024): what is known of a row is its largest logit m yet, and sums of
e^(l - m) times 1, times the head's rows, and in the KL's row also times l - log q.

The two run in turns. With one thread the CPU's time is taken, which other programs of a busy
machine change little; with two, the clock's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.support.results import write
from benchmarks.support.timing import random
from rome_fast import ops
from rome_fast.bench.setting import setting
from rome_fast.model.intercept import linear_in_slices

HEADS = (49152, 576), (128256, 2048), (262144, 1152)
DTYPES = torch.float32, torch.bfloat16
READS = {1: (7, 14, 56), 2: (14,)}  # by threads
CHUNKS = 1024, 4096
ROUNDS = 5
KL_FACTOR = 0.0625
# Of the gradient's norm; bfloat16 rounds the logits and what the gradient is computed from.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}

Clock = Callable[[], float]


@dataclass(frozen=True, eq=False)
class Step:
    """What the head is given in a step of one edit.

    Attributes:
        hidden: [n_reads + 1, d], the last row for the KL.
        weight: [vocabulary, d].
        target_ids: [n_reads].
        log_q: [1, vocabulary], the KL's reference.
    """

    hidden: Tensor
    weight: Tensor
    target_ids: Tensor
    log_q: Tensor

    @classmethod
    def of(cls, weight: Tensor, n_reads: int) -> Step:
        vocabulary, d = weight.shape
        hidden = 2 * random(n_reads + 1, d, seed=1).to(weight.dtype)
        log_q = random(1, vocabulary, seed=2).log_softmax(-1)
        return cls(hidden, weight, torch.arange(n_reads), log_q)


def exact(step: Step) -> tuple[Tensor, Tensor]:
    """Loss and its gradient by the states, in float64, by autograd."""
    hidden = step.hidden.double().requires_grad_()
    reads, now = linear(hidden, step.weight.double()).log_softmax(-1).split([len(hidden) - 1, 1])
    nll = -reads.gather(-1, step.target_ids[:, None]).mean()
    loss = nll + KL_FACTOR * (now.exp() * (now - step.log_q.double())).sum()
    return loss.detach(), torch.autograd.grad(loss, hidden)[0]


def twice(step: Step, parts: dict[str, list[float]], clock: Clock) -> tuple[Tensor, Tensor]:
    """The same as the search computes it, with the time of its parts."""
    at = [clock()]
    hidden = step.hidden.detach().requires_grad_()
    sliced = hidden.dtype == torch.float32
    with torch.enable_grad():
        weight = step.weight
        logits = linear_in_slices(hidden, weight, None) if sliced else linear(hidden, weight)
    at.append(clock())
    given = step.target_ids, torch.zeros_like(step.target_ids), step.log_q
    losses, by_logits, *_ = ops.value_loss(logits.detach(), *given, kl_factor=KL_FACTOR)
    at.append(clock())
    (gradient,) = torch.autograd.grad(logits, hidden, by_logits)
    at.append(clock())
    for name, start, end in zip(("forward", "loss", "backward"), at, at[1:], strict=False):
        parts.setdefault(name, []).append(1e3 * (end - start))
    return losses[0], gradient


def once(step: Step, chunk: int) -> tuple[Tensor, Tensor]:
    """The same from one pass over the head, ``chunk`` words at a time."""
    (n_rows, d), n_reads = step.hidden.shape, len(step.target_ids)
    top, total, apart = (torch.full((n_rows, 1), x) for x in (-torch.inf, 0.0, 0.0))
    # The head's rows: by e^(l - top) for each row, then by e^(l - top) (l - log q) for the KL's.
    sums = torch.zeros(n_rows + 1, d)
    for weight, log_q in chunks(step, chunk):
        logits = linear(step.hidden, weight).float()
        before, top = top, torch.maximum(top, logits.amax(-1, keepdim=True))
        shrink = (before - top).exp_()
        odds = (logits - top).exp_()
        distance = odds[n_reads:] * (logits[n_reads:] - log_q)
        total.mul_(shrink).add_(odds.sum(-1, keepdim=True))
        apart.mul_(shrink).add_(distance.sum(-1, keepdim=True))
        sums.mul_(torch.cat([shrink, shrink[n_reads:]]))
        factors = torch.cat([odds, distance])
        if weight.dtype == torch.float32:
            sums.addmm_(factors, weight)
        else:
            sums += factors.to(weight.dtype) @ weight
    means, log_total = sums[:n_rows] / total, top + total.log()
    targets = step.weight[step.target_ids].float()
    nll = log_total[:n_reads, 0] - (step.hidden[:n_reads].float() * targets).sum(-1)
    kl = (apart / total - log_total)[n_reads:]
    of_kl = sums[n_rows:] / total[n_reads:] - (log_total[n_reads:] + kl) * means[n_reads:]
    gradient = torch.cat([(means[:n_reads] - targets) / n_reads, KL_FACTOR * of_kl])
    return nll.mean() + KL_FACTOR * kl[0, 0], gradient.to(step.hidden.dtype)


def chunks(step: Step, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of the head, with the KL's reference for their words."""
    return zip(step.weight.split(chunk), step.log_q.split(chunk, dim=-1), strict=True)


@torch.no_grad()
def compared(step: Step, threads: int) -> dict[str, Any]:
    """Milliseconds of both, and how many times as long it takes to read the head twice."""
    clock = time.process_time if threads == 1 else time.perf_counter
    parts: dict[str, list[float]] = {}
    ways: dict[str, Callable[[], Any]] = {"twice": lambda: twice(step, parts, clock)}
    for chunk in CHUNKS:
        ways[f"once, {chunk}"] = lambda chunk=chunk: once(step, chunk)
    with torch.enable_grad():
        loss, gradient = exact(step)
    tolerance = TOLERANCES[step.weight.dtype]
    for way in ways.values():
        found = way()
        torch.testing.assert_close(found[0].double(), loss, rtol=tolerance, atol=0)
        assert (found[1] - gradient).norm() <= tolerance * gradient.norm()
    # What reading the matrix takes, as float32: most that reading it once can save.
    ways["read"] = step.weight.view(torch.float32).sum
    parts.clear()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = clock()
            way()
            seconds[name].append(clock() - start)
    row: dict[str, Any] = {
        f"{name}_ms": round(statistics.median(times), 2) for name, times in parts.items()
    }
    for name in ("read", "twice"):
        row[f"{name}_ms"] = round(1e3 * statistics.median(seconds[name]), 2)
    for chunk in CHUNKS:
        pairs = zip(seconds["twice"], seconds[f"once, {chunk}"], strict=True)
        low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
        row[f"times_{chunk}"] = round(middle, 2)
        row[f"times_{chunk}_quartiles"] = [round(low, 2), round(high, 2)]
    return row


def measure() -> Iterator[dict[str, Any]]:
    for threads, counts in READS.items():
        torch.set_num_threads(threads)
        for vocabulary, d in HEADS:
            for dtype in DTYPES:
                weight = (random(vocabulary, d) / d**0.5).to(dtype)
                for n_reads in counts:
                    case = {"threads": threads, "vocabulary": vocabulary, "d": d}
                    case |= {"dtype": str(dtype).removeprefix("torch."), "n_reads": n_reads}
                    yield case | compared(Step.of(weight, n_reads), threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    rows = []
    for row in measure():
        print(row, flush=True)
        rows.append(row)
        if args.out:
            write(args.out, {"setting": setting()}, rows, "results")


if __name__ == "__main__":
    main()
