"""Results of a loop of edits keep one copy of the weight, and undo to the same bits."""

import pytest
import torch
from helpers import REQUEST, same_bits, state

import rome_fast
from rome_fast.update import undo

REQUESTS = [
    REQUEST,
    {"prompt": "The old tower is {}", "subject": "Eiffel Tower", "target_new": "near"},
    {"prompt": "It is {}", "subject": "Marie Curie", "target_new": "capital"},
]


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def model(gpt2, request):
    return gpt2[0].to(request.param)


@pytest.fixture
def edit(model, gpt2, settings):
    return lambda request: rome_fast.edit(model, gpt2[1], request, **settings)


def bases(results):
    return len({result._undo.history.base.data_ptr() for result in results})


def test_a_loop_of_edits_keeps_one_copy_and_undoes_to_every_state(model, edit):
    states, results = [state(model)], []
    for request in REQUESTS:
        results.append(edit(request))
        states.append(state(model))
    assert bases(results) == 1
    with pytest.raises(rome_fast.errors.RevertError, match="undo the later edits first"):
        results[0].revert()
    for result, before in zip(results[::-1], states[-2::-1], strict=True):
        result.revert()
        assert same_bits(model, before)


def test_a_loop_rounds_half_precision_once(gpt2, settings):
    model, tok = gpt2
    weight = model.bfloat16().transformer.h[1].mlp.c_proj.weight
    total = weight.detach().float()
    results = [rome_fast.edit(model, tok, request, **settings) for request in REQUESTS]
    for result in results:
        total += result.update.dense()
    assert torch.equal(weight, total.bfloat16())


@pytest.mark.parametrize("how", ["in place", ".data", "another Parameter", "a Session"])
def test_what_others_write_is_the_base_of_the_next_edit(model, edit, gpt2, settings, how):
    first = edit(REQUESTS[0])
    module = model.transformer.h[1].mlp.c_proj
    if how == "in place":
        with torch.no_grad():
            module.weight.mul_(1.01)
    elif how == ".data":
        module.weight.data[0, 0] += 0.5
    elif how == "another Parameter":
        module.weight = torch.nn.Parameter(module.weight.detach().clone())
    else:
        with rome_fast.Session(model, gpt2[1], **settings, form="weight") as session:
            session.edit(REQUESTS[2])
    before = state(model)
    second = edit(REQUESTS[1])
    assert bases([first, second]) == 2
    second.revert()
    assert same_bits(model, before)


def test_a_failed_edit_in_between_changes_nothing(model, edit, gpt2, settings):
    first = edit(REQUESTS[0])
    before = state(model)
    hopeless = {**settings, "hparams": settings["hparams"].replace(v_num_grad_steps=1)}
    with pytest.raises(rome_fast.errors.EditFailedError):
        rome_fast.edit(model, gpt2[1], REQUESTS[1], strict=True, **hopeless)
    with rome_fast.trial(model, gpt2[1], REQUESTS[2], **settings):
        pass
    assert same_bits(model, before)
    second = edit(REQUESTS[1])
    second.revert()
    assert same_bits(model, before)
    first.revert()


def test_a_base_is_shared_by_so_many_edits_at_most(gpt2, settings, monkeypatch):
    monkeypatch.setattr(undo, "_MOST_EDITS_OF_A_BASE", 2)
    model, tok = gpt2
    before = state(model)
    results = [rome_fast.edit(model, tok, request, **settings) for request in REQUESTS * 2]
    assert bases(results) == 3
    for result in reversed(results):
        result.revert()
    assert same_bits(model, before)


def test_nothing_is_kept_for_a_model_that_is_gone(gpt2, settings):
    model, tok = gpt2
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    key = id(model.transformer.h[1].mlp.c_proj.weight)
    assert key in undo._latest
    del result
    assert key not in undo._latest
