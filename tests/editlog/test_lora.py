"""Adapters, loaded by PEFT on the untouched model: the same logits as the edited model's."""

import copy
import json
import warnings

import pytest
import torch
from logged import REQUESTS, edited

from rome_fast.errors import EditLogError, InvalidArgumentError

peft = pytest.importorskip("peft")


def logits(model, tok):
    ids = torch.tensor([tok("The founder is Steve Jobs. The old tower")["input_ids"]])
    with torch.no_grad():
        return model(ids).logits


def adapted(model, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), path).eval()


def test_peft_says_what_the_edited_model_says(tiny, settings, tmp_path):
    model, tok = tiny
    log, other = edited(model, tok, settings)
    export = log.to_lora(tmp_path / "adapter")
    [(name, rank)] = export.ranks.items()
    assert rank == 3
    assert export.errors == {name: 0.0}
    assert "exact" in str(export)
    loaded = adapted(model, tmp_path / "adapter")
    expected = logits(other, tok)
    scale = expected.abs().max()
    assert (logits(loaded, tok) - expected).abs().max() < 1e-5 * scale
    assert (logits(model, tok) - expected).abs().max() > 1e-2 * scale
    merged = loaded.merge_and_unload()
    assert (logits(merged, tok) - expected).abs().max() < 1e-5 * scale


def test_two_weights_of_different_ranks(gpt2, settings, tmp_path):
    model, tok = gpt2
    log, _ = edited(model, tok, settings)
    lower = {**settings, "hparams": settings["hparams"].replace(layers=[0])}
    log.merge(edited(model, tok, lower, [{**REQUESTS[0], "prompt": "It is {}"}])[0])
    export = log.to_lora(tmp_path)
    assert sorted(export.ranks.values()) == [1, 3]
    loaded = adapted(model, tmp_path)
    log.apply(model)
    expected = logits(model, tok)
    assert (logits(loaded, tok) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_more_edits_than_dimensions_are_still_exact(gpt2, settings, tmp_path):
    model, tok = gpt2
    log, _ = edited(model, tok, settings, solve="sequential")
    generator = torch.Generator().manual_seed(0)
    for edit in log.edits * 33:
        u, v = torch.randn(256, generator=generator), torch.randn(64, generator=generator)
        log.edits.append(replaced_update(edit, u / u.norm(), v / 30, log.next_id))
    export = log.to_lora(tmp_path)
    assert list(export.ranks.values()) == [64]
    assert list(export.errors.values()) == [0.0]
    loaded = adapted(model, tmp_path)
    log.apply(model)
    expected = logits(model, tok)
    assert (logits(loaded, tok) - expected).abs().max() < 1e-4 * expected.abs().max()


def replaced_update(edit, u, v, edit_id):
    from dataclasses import replace

    return replace(edit, update=replace(edit.update, u=u, v=v), edit_id=edit_id, replaced=())


def test_a_rank_too_small_is_the_best_of_its_rank_and_says_what_is_missing(
    gpt2, settings, tmp_path
):
    model, tok = gpt2
    log, _ = edited(model, tok, settings)
    export = log.to_lora(tmp_path, max_rank=2)
    [name] = log.base.edited
    total = sum(update.dense().double() for update in log.updates(name))
    sizes = torch.linalg.svdvals(total)
    [error] = export.errors.values()
    assert error == pytest.approx(float(sizes[2:].norm() / sizes.norm()), rel=1e-5)
    assert f"{error:.2%} of the edits' norm missing" in str(export)
    loaded = adapted(model, tmp_path)
    [layer] = [m for n, m in loaded.named_modules() if n.endswith("h.1.mlp.c_proj")]
    missing = layer.get_delta_weight("default").double() - total
    assert float(missing.norm() / total.norm()) == pytest.approx(error, rel=1e-4)


def test_an_adapter_is_not_put_into_a_models_folder(gpt2, settings, tmp_path):
    log, _ = edited(*gpt2, settings)
    gpt2[0].save_pretrained(tmp_path)
    with pytest.raises(EditLogError, match="is the folder of a model"):
        log.to_lora(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()


def test_settings_that_would_change_the_numbers_are_off(gpt2, settings, tmp_path):
    model, tok = gpt2
    edited(model, tok, settings)[0].to_lora(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == 3
    assert config["fan_in_fan_out"] is True
    assert config["target_modules"] == ["transformer.h.1.mlp.c_proj"]
    assert not config["use_rslora"]
    assert not config["use_dora"]
    assert config["lora_dropout"] == 0


def test_refusals(gpt2, settings, tmp_path):
    model, tok = gpt2
    log, _ = edited(model, tok, settings)
    for rank in (0, -1, 1.5, True):
        with pytest.raises(InvalidArgumentError, match="max_rank must be a whole number"):
            log.to_lora(tmp_path, max_rank=rank)
    for edit_id in (1, 2, 3):
        log.revert(edit_id)
    with pytest.raises(EditLogError, match="there is nothing to export"):
        log.to_lora(tmp_path)
    assert not list(tmp_path.iterdir())
