"""Times a whole collection against the collectors that a user would write, on the same texts.

    pytest benchmarks/moment/bench_collect.py --benchmark-only --save-result collect-cpu

A GPT-2 of the small one's shape (d_key 3072, random weights, the embedded model's vocabulary)
reads paragraphs of any length, one layer. Peers pad texts in batches sorted by length and add with
`addmm_`: `peer_stop` ends its forward at the layer, as kmeng01/rome does; `peer_whole` is a plain
hook on a whole forward. Set ROME_FAST_BENCH_TEXTS to a text file, one text a line.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import rome_fast
from benchmarks.support.results import ROOT
from benchmarks.support.timing import timed
from rome_fast.bench.peak import peak_mib
from rome_fast.moment.collect.collector import collect_second_moment
from rome_fast.moment.collect.corpus import Corpus

LAYER, TOKENS, MAX_LENGTH, PEER_BATCH_TOKENS = 5, 8_192, 1024, 3072
IMPLS = ("rome_fast", "peer_stop", "peer_whole")
ROUNDS = 5


def documents():
    """Token ids of the first texts, 8,192 in all, cut where packing cuts them, for all alike."""
    path = os.environ.get("ROME_FAST_BENCH_TEXTS")
    if not path or not Path(path).is_file():
        pytest.skip("ROME_FAST_BENCH_TEXTS names no text file")
    _, tok, _ = rome_fast.demo.load()
    parts, read = [], 0
    for ids in Corpus(path, tok, len(tok)):
        while ids:
            room = min(MAX_LENGTH - read % MAX_LENGTH, TOKENS - read)
            parts.append(ids[:room])
            ids, read = ids[room:], read + len(parts[-1])
            if read == TOKENS:
                return tok, parts
    pytest.skip(f"{path} holds fewer than {TOKENS} tokens")


def gpt2_small(vocabulary):
    torch.manual_seed(0)
    return (
        GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, bos_token_id=0, eos_token_id=0))
        .eval()
        .requires_grad_(False)
    )


class StopForwardError(Exception):
    pass


def padded_batches(rows):
    """Texts by falling length, as many at a time as keep the padded batch within the budget."""
    rows = sorted(rows, key=len, reverse=True)
    while rows:
        n = max(1, PEER_BATCH_TOKENS // len(rows[0]))
        batch, rows = rows[:n], rows[n:]
        ids = torch.zeros(len(batch), len(batch[0]), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(batch):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        yield ids, mask


@torch.no_grad()
def peer(model, rows, stop):
    """A hook, padded batches, a masked copy of the keys, addmm_."""
    total, count, seen = torch.zeros(3072, 3072), 0, []

    def hook(module, args):
        seen.append(args[0])
        if stop:
            raise StopForwardError

    handle = model.transformer.h[LAYER].mlp.c_proj.register_forward_pre_hook(hook)
    for ids, mask in padded_batches(rows):
        try:
            model(input_ids=ids, attention_mask=mask)
        except StopForwardError:
            pass
        keys = seen.pop()[mask.bool()]
        total.addmm_(keys.T, keys)
        count += len(keys)
    handle.remove()
    return total / count, count


def ours(model, tok, rows):
    moment = collect_second_moment(model, tok, rows, LAYER, tokens=TOKENS, progress=False)[LAYER]
    return moment.moment(), moment.count


def run(impl, model, tok, rows):
    return ours(model, tok, rows) if impl == "rome_fast" else peer(model, rows, impl == "peer_stop")


@pytest.fixture(scope="module")
def work():
    """The texts and the model, once all implementations have been seen to agree on them."""
    tok, rows = documents()
    model = gpt2_small(len(tok))
    exact, count = peer(model, rows, stop=True)
    for impl in IMPLS:
        moment, n = run(impl, model, tok, rows)
        assert n == count == TOKENS
        assert (moment - exact).norm() < 1e-5 * exact.norm()
    return model, tok, rows


@pytest.mark.parametrize("impl", IMPLS)
def test_collect(benchmark, work, impl):
    model, tok, rows = work
    beside = None if impl == "rome_fast" else (lambda: ours(model, tok, rows))
    timed(benchmark, lambda: run(impl, model, tok, rows), rounds=ROUNDS, beside=beside, impl=impl)
    child = [sys.executable, "-m", "benchmarks.moment.bench_collect", impl]
    done = subprocess.run(child, cwd=ROOT, capture_output=True, check=True)
    peak = json.loads(done.stdout.splitlines()[-1])
    benchmark.extra_info.update(
        tokens=TOKENS,
        texts=len(rows),
        tokens_per_s=round(TOKENS / benchmark.stats.stats.median),
        **peak,
    )


def peak_memory(impl):
    """MiB of resident memory that a collection takes on top of the loaded model, at its peak."""
    tok, rows = documents()
    model = gpt2_small(len(tok))
    peak = peak_mib(lambda: run(impl, model, tok, rows))
    print(json.dumps({"peak_mib": peak}))


if __name__ == "__main__":
    peak_memory(sys.argv[1])
