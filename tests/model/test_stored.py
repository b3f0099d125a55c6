"""float16 computed in float32 on a CPU: what is kept, hashed and logged stays float16."""

import pytest
import torch
from tiny import tiny_gpt2, tiny_llama

from rome_fast.errors import NonFiniteError
from rome_fast.model.stored import as_stored, narrow_model, stored_dtype, widen_model


def bits(model):
    return {name: (x.dtype, x.clone()) for name, x in model.state_dict().items()}


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_what_was_widened_narrows_to_the_same_bits(make):
    model = make()[0].half()
    if make is tiny_llama:
        model.get_output_embeddings().bfloat16()
    before = bits(model)
    widen_model(model)
    wide = {str(x.dtype) for x in model.state_dict().values()}
    assert "torch.float16" not in wide and "torch.float32" in wide
    assert ("torch.bfloat16" in wide) == (make is tiny_llama), "only float16 is widened"
    narrow_model(model)
    after = bits(model)
    assert all(
        after[n][0] == dtype and torch.equal(after[n][1], x) for n, (dtype, x) in before.items()
    )


def test_an_edited_number_is_rounded_once():
    model = tiny_llama()[0].half()
    weight = model.get_input_embeddings().weight
    widen_model(model)
    assert weight.dtype == torch.float32 and stored_dtype(weight) == torch.float16
    wanted = weight.detach() * 1.0003
    with torch.no_grad():
        weight.copy_(wanted)
    assert as_stored(weight).dtype == torch.float16
    narrow_model(model)
    assert torch.equal(weight, wanted.half())


def test_what_float16_cannot_hold_is_named_and_stays_wide():
    model = tiny_llama()[0].half()
    widen_model(model)
    name, weight = next(iter(model.named_parameters()))
    with torch.no_grad():
        weight[0, 0] = 1e5
    with pytest.raises(NonFiniteError, match=f"{name} overflows float16"):
        narrow_model(model)
    assert weight.dtype == torch.float32 and weight[0, 0] == 1e5
