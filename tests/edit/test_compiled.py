"""Compiled models: edited as plain ones are, and not compiled again for it."""

from __future__ import annotations

import copy
import threading
import time

import pytest
import torch
from helpers import REQUEST, UNWATCHED, same_bits, state

import rome_fast


def whole(model, backend):
    return torch.compile(model, backend=backend)


def without_breaks(model, backend):
    return torch.compile(model, backend=backend, fullgraph=True)


def in_place(model, backend):
    model.compile(backend=backend)
    return model


def block_by_block(model, backend):
    blocks = model.transformer.h
    for i, block in enumerate(blocks):
        blocks[i] = torch.compile(block, backend=backend)
    return model


def blocks_in_place(model, backend):
    for block in model.transformer.h:
        block.compile(backend=backend)
    return model


WAYS = [whole, without_breaks, in_place, block_by_block, blocks_in_place]


class Compiled:
    """A model compiled by one of the ways, and how often that happened."""

    def __init__(self, way, model):
        torch._dynamo.reset()
        self.n_graphs = 0
        self.model = way(model, self._backend)

    def _backend(self, graph, inputs):
        self.n_graphs += 1
        return graph.forward

    @torch.no_grad()
    def logits(self, ids):
        return self.model(input_ids=ids).logits


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def compiled(request, gpt2):
    """(compiled, an equal model that is not, tok, ids of the filled prompt)."""
    model, tok = gpt2
    ids = torch.tensor([tok("The founder is Steve Jobs")["input_ids"]])
    plain = copy.deepcopy(model)
    yield Compiled(request.param, model), plain, tok, ids
    torch._dynamo.reset()


@pytest.mark.covering(compiled=[whole, blocks_in_place])
def test_it_says_the_new_fact_and_is_not_compiled_again(compiled, settings):
    compiled, plain, tok, ids = compiled
    original, before = compiled.logits(ids), state(compiled.model)
    n_graphs = compiled.n_graphs
    assert n_graphs
    result = rome_fast.edit(compiled.model, tok, REQUEST, **settings)
    expected = rome_fast.edit(plain, tok, REQUEST, **settings)
    assert result.weight_name == expected.weight_name
    assert torch.equal(result.update.dense(), expected.update.dense())
    with torch.no_grad():
        torch.testing.assert_close(compiled.logits(ids), plain(input_ids=ids).logits)
    assert (compiled.logits(ids) - original).abs().max() > 1
    result.revert()
    assert same_bits(compiled.model, before)
    torch.testing.assert_close(compiled.logits(ids), original)
    assert compiled.n_graphs == n_graphs
    assert torch.compiler.set_stance("default").prev.stance == "default"


@pytest.mark.covering(compiled=[in_place])
def test_a_session_edits_it_and_its_log_is_that_of_the_plain_model(compiled, settings):
    compiled, plain, tok, ids = compiled
    with rome_fast.Session(
        compiled.model, tok, health=UNWATCHED, **settings, form="weight"
    ) as session:
        compiled.logits(ids)  # compiled with the Session's hooks on
        n_graphs = compiled.n_graphs
        session.edit(REQUEST)
        log = session.log
        found = compiled.logits(ids)
    log.apply(plain)
    with torch.no_grad():
        torch.testing.assert_close(found, plain(input_ids=ids).logits)
    assert compiled.logits(ids).argmax(-1)[0, -1] == found.argmax(-1)[0, -1]
    assert compiled.n_graphs == n_graphs


@pytest.mark.covering(compiled=[block_by_block], early=[False])
@pytest.mark.parametrize("early", [True, False], ids=["compiled before", "compiled after"])
def test_a_forward_waits_for_the_edit(compiled, settings, early):
    """Where the first forward, which compiles, comes before or after the Session."""
    compiled, _, tok, ids = compiled
    if early:
        compiled.logits(ids)
    started, done = threading.Event(), threading.Event()

    def run():
        started.set()
        compiled.logits(ids)
        done.set()

    with rome_fast.Session(
        compiled.model, tok, health=UNWATCHED, **settings, form="weight"
    ) as session:
        thread = threading.Thread(target=run)
        with session._lock.editing():
            thread.start()
            assert started.wait(10)
            time.sleep(0.1)
            assert not done.is_set()
        thread.join(60)
        assert done.is_set()
        assert not session._lock._n_readers
    compiled.logits(ids)
