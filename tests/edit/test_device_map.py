"""Models that accelerate has dispatched: hooks on every module, and weights that are elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import REQUEST, UNWATCHED, same_bits, state

import rome_fast
from rome_fast.errors import UnsupportedModelError

accelerate = pytest.importorskip("accelerate")


def dispatched(model, tmp_path, offloaded=()):
    """Each block a part, all on the CPU, but those with these names on the disk."""
    lists = [name for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    parts = [f"{lists[0]}.{i}" for i in range(4)]
    parts += [
        name
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and not name.startswith(lists[0])
    ]
    devices = {part: "disk" if part.endswith(tuple(offloaded)) else "cpu" for part in parts}
    return accelerate.dispatch_model(
        model, devices, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True
    )


@pytest.mark.parametrize("compute_dtype", ["model", "bfloat16"])
def test_a_model_in_parts_is_edited_as_a_whole_one(tiny, settings, tmp_path, compute_dtype):
    model, tok = tiny
    plain = copy.deepcopy(model)
    model = dispatched(model, tmp_path)
    settings["hparams"] = settings["hparams"].replace(compute_dtype=compute_dtype)
    assert hasattr(model.get_output_embeddings(), "_hf_hook")
    before = state(model)
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    expected = rome_fast.edit(plain, tok, REQUEST, **settings)
    assert hasattr(result._undo.history.projection.module, "_hf_hook")
    torch.testing.assert_close(result.update.dense(), expected.update.dense())
    assert result.rank_after == 1
    assert result.prob_after == pytest.approx(expected.prob_after, rel=1e-5)
    result.revert()
    assert same_bits(model, before)
    with rome_fast.Session(model, tok, health=UNWATCHED, **settings, form="weight") as session:
        assert session.edit(REQUEST).rank_after == 1
        log = session.log
        session.undo()
    assert same_bits(model, before)
    log.apply(model).revert()
    assert same_bits(model, before)


def test_an_offloaded_weight_is_refused_by_name_and_others_may_be(tiny, settings, tmp_path):
    model, tok = tiny
    plain = copy.deepcopy(model)
    model = dispatched(model, tmp_path, [".0", ".3", "wte", "embed_tokens", "lm_head"])
    assert model.get_input_embeddings().weight.is_meta
    found, expected = (rome_fast.edit(m, tok, REQUEST, **settings) for m in (model, plain))
    torch.testing.assert_close(found.update.dense(), expected.update.dense())
    found.revert()
    name = found.weight_name.replace(".1.", ".3.")
    settings["hparams"] = settings["hparams"].replace(layers=[3])
    with pytest.raises(UnsupportedModelError) as refusal:
        rome_fast.edit(model, tok, REQUEST, **settings)
    assert str(refusal.value) == (
        f"{name} is offloaded (meta device): load the model fully before editing"
    )
