"""What is kept of the contexts gives the first pass that the whole model gives, or is not used."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from helpers import REQUEST, state
from prepared import prepared, random_edit

import rome_fast
from rome_fast.model.intercept import hidden_of
from rome_fast.model.spec import ModelSpec
from rome_fast.value import context_states
from rome_fast.value.batch import EditBatch
from rome_fast.value.context_states import ContextStates, FirstPasses
from rome_fast.value.first_pass import run_first_pass


def batches():
    """Three batches of contexts whose first 3, 5 and 2 tokens are always the same."""
    words = random_edit(9, [3, 5, 2, 0], 1).input_ids
    made = []
    for seed in (1, 2, 3):
        edits = [random_edit(10 * seed + i, [3 + i, 6, 4, 1], 1 + i) for i in range(seed)]
        for edit in edits:
            for row, n_common in enumerate([3, 5, 2]):
                edit.input_ids[row, :n_common] = words[row, :n_common]
        made.append(EditBatch.of(edits))
    return made


@pytest.mark.covering
@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_first_passes_are_those_of_the_whole_model(family, layer):
    one, two, three = batches()
    model, projection, _ = prepared(family, layer, one)
    passes, n_tokens = FirstPasses(projection), []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda _, __, output: n_tokens.append(output.shape[-2])
    )
    found = [passes.run(ModelSpec.of(model), batch) for batch in (one, two, three)]
    handle.remove()
    # The third batch: below the edited block what is new, from there on all.
    assert len(n_tokens) == 5 and n_tokens[3] < n_tokens[4] == three.input_ids.shape[1]
    for batch, first in zip((one, two, three), found, strict=True):
        expected = run_first_pass(ModelSpec.of(model), projection, batch)
        at = batch.attention_mask.bool()
        pairs = [
            (first.keys, expected.keys),
            (first.values, expected.values),
            (first.logits, expected.logits),
            (hidden_of(first.below)[at], hidden_of(expected.below)[at]),
        ]
        for a, b in pairs:
            assert (a - b).norm() <= 1e-5 * b.norm()


def test_shared_tokens_do_not_run_again():
    one, two, _ = batches()
    model, projection, first = prepared("Llama", 2, one)
    states = ContextStates.of(ModelSpec.of(model), projection, one, first)
    context, n_shared = states._shared(two)
    assert context.tolist() == [0, 1, 2, 0] * 2
    assert (n_shared.view(2, 4)[:, :3] >= torch.tensor([3, 5, 2])).all()
    shapes = []
    model.model.layers[0].register_forward_hook(lambda _, __, out: shapes.append(out.shape))
    states.enter(ModelSpec.of(model), two)
    assert shapes[0][1] == int((two.attention_mask.sum(1) - n_shared).max())


def test_written_weights_are_noticed(gpt2, settings):
    """Between two requests: those of the edited block keep the states, those below do not."""
    model, _ = gpt2
    batch = EditBatch.of([random_edit(1, [3, 4, 1], 1)])
    model, projection, first = prepared("GPT2", 1, batch)
    states = ContextStates.of(ModelSpec.of(model), projection, batch, first)
    assert states.are_current(ModelSpec.of(model))
    projection.weight.mul_(1.5)
    assert states.are_current(ModelSpec.of(model))
    model.transformer.h[0].mlp.c_fc.weight[0, 0] += 1
    assert not states.are_current(ModelSpec.of(model))
    passes = FirstPasses(projection)
    for _ in range(3):
        passes.run(ModelSpec.of(model), batch)
    model.transformer.wte.weight.mul_(0.5)
    torch.testing.assert_close(
        passes.run(ModelSpec.of(model), batch).keys,
        run_first_pass(ModelSpec.of(model), projection, batch).keys,
    )


@pytest.mark.parametrize("damage", ["wrong", "refused"])
def test_states_that_do_not_reproduce_are_tried_once(damage, monkeypatch):
    one, two, three = batches()
    model, projection, _ = prepared("Llama", 1, one)
    own, tried = ContextStates.enter, []

    def enter(self, spec, batch):
        tried.append(batch)
        if damage == "refused":
            raise TypeError("this model takes no such input")
        return own(self, spec, batch) * 1.01

    monkeypatch.setattr(ContextStates, "enter", enter)
    passes = FirstPasses(projection)
    for batch in (one, two, three):
        assert torch.equal(
            passes.run(ModelSpec.of(model), batch).keys,
            run_first_pass(ModelSpec.of(model), projection, batch).keys,
        )
    assert tried == [two]


def test_states_as_exact_as_tf32_are_kept_where_that_is_what_multiplies(monkeypatch):
    one, two, _ = batches()
    model, projection, first = prepared("Llama", 1, one)
    states = ContextStates.of(ModelSpec.of(model), projection, one, first)
    passed = run_first_pass(ModelSpec.of(model), projection, two)
    own = ContextStates.enter
    monkeypatch.setattr(ContextStates, "enter", lambda *given: own(*given) * (1 + 1e-3))
    assert not states.reproduce(ModelSpec.of(model), two, passed)
    monkeypatch.setattr(context_states, "is_tf32", lambda *_: True)
    assert states.reproduce(ModelSpec.of(model), two, passed)


def test_a_long_list_is_edited_as_by_single_calls(tiny, settings):
    model, tok = tiny
    subjects = ["Steve Jobs", "Ada Lovelace", "Marie Curie", "LeBron James"]
    requests = [{**REQUEST, "subject": subject} for subject in subjects]
    with rome_fast.trial(model, tok, requests[0], **settings):
        pass
    before = state(model)
    one_by_one = [rome_fast.edit(model, tok, request, **settings) for request in requests]
    model.load_state_dict(before)
    used = []
    own = context_states.run_first_pass
    patch = pytest.MonkeyPatch()
    patch.setattr(context_states, "run_first_pass", lambda *a: used.append(len(a)) or own(*a))
    listed = rome_fast.edit_many(model, tok, requests, progress=False, **settings)
    patch.undo()
    assert used == [3, 3, 4, 4]
    for a, b in zip(listed, one_by_one, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-4)
        assert (a.update.dense() - b.update.dense()).norm() <= 1e-3 * b.update.norm
