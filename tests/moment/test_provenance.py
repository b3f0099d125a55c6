"""What a second moment belongs to: what changes a hash, and what does not."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rome_fast import SecondMoment
from rome_fast.errors import SecondMomentError, SecondMomentWarning, UnsupportedModelError
from rome_fast.model import hashes
from rome_fast.model.hashes import tokenizer_hash, weights_hash
from rome_fast.model.spec import ModelSpec
from rome_fast.moment.collect.resolve import resolve_second_moment
from rome_fast.moment.provenance import differences, provenance


def test_weights_hash_covers_the_layer_and_below(tiny):
    """Llama registers a block's norms after its MLP."""
    model, _ = tiny
    llama = model.config.model_type == "llama"
    spec = ModelSpec.of(model)
    projection = spec.down_projection(1)
    before = weights_hash(ModelSpec.of(model), projection)
    with torch.no_grad():
        projection.weight.mul_(2)
        spec.blocks[2].get_parameter("mlp.up_proj.weight" if llama else "mlp.c_fc.weight").mul_(2)
        model.get_parameter("model.norm.weight" if llama else "transformer.ln_f.weight").mul_(2)
    spec.blocks[3].to("meta")  # offloaded, and never needed
    assert weights_hash(ModelSpec.of(model), projection) == before
    with torch.no_grad():
        norm = "input_layernorm.weight" if llama else "ln_2.weight"
        spec.blocks[1].get_parameter(norm).mul_(1.1)
    assert weights_hash(ModelSpec.of(model), projection) != before
    with torch.no_grad():
        spec.blocks[1].get_parameter(norm).div_(1.1)
        model.get_input_embeddings().weight.mul_(1.5)
    assert weights_hash(ModelSpec.of(model), projection) != before
    spec.blocks[0].to("meta")
    with pytest.raises(UnsupportedModelError, match="load the blocks up to 1 fully"):
        weights_hash(ModelSpec.of(model), projection)


@pytest.mark.parametrize("how", ["counted", "uncounted", "replaced"])
def test_a_hash_is_kept_until_a_weight_is_written(tiny, monkeypatch, how):
    """Also through .data, whose writes torch does not count."""
    model, _ = tiny
    projection = ModelSpec.of(model).down_projection(1)
    hashed, own = [], hashes.sampled_hash
    monkeypatch.setattr(hashes, "sampled_hash", lambda *args: hashed.append(1) or own(*args))

    def found():
        return weights_hash(ModelSpec.of(model), projection)

    before = found()
    assert found() == before and len(hashed) == 1
    embedding = model.get_input_embeddings()
    if how == "counted":
        with torch.no_grad():
            embedding.weight.mul_(1.5)
    elif how == "uncounted":
        embedding.weight.data.mul_(1.5)
    else:
        embedding.weight = torch.nn.Parameter(embedding.weight.detach() * 1.5)
    changed = found()
    assert changed != before and len(hashed) == 2
    assert changed == own(hashes._below(ModelSpec.of(model), projection))
    assert weights_hash(ModelSpec.of(model), ModelSpec.of(model).down_projection(0)) != changed


def test_a_saved_and_reloaded_model_is_the_same(tiny, tmp_path):
    model, tok = tiny
    before = provenance(ModelSpec.of(model), tok, ModelSpec.of(model).down_projection(1))
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    tok_again = AutoTokenizer.from_pretrained(tmp_path)
    assert (
        provenance(ModelSpec.of(again), tok_again, ModelSpec.of(again).down_projection(1)) == before
    )


def test_differences_name_the_field(tiny):
    model, tok = tiny
    spec = ModelSpec.of(model)
    info = provenance(ModelSpec.of(model), tok, spec.down_projection(1))
    assert differences(info, ModelSpec.of(model), spec.down_projection(1)) == []
    assert differences({}, ModelSpec.of(model), spec.down_projection(1)) == []
    told = differences(info, ModelSpec.of(model), spec.down_projection(2))
    assert [text.split(" differs")[0] for text in told] == [
        "the module",
        "the weights below the layer (hash)",
    ]
    model.config.rope_theta = model.config.layer_norm_epsilon = 0.5
    [text] = differences(info, ModelSpec.of(model), spec.down_projection(1))
    assert text.startswith("the configuration (hash) differs: ")
    half = copy.deepcopy(model).bfloat16()
    told = differences(info, ModelSpec.of(half), ModelSpec.of(half).down_projection(1))
    assert "the dtype of the weights differs: float32 there, bfloat16 here" in told


def site(model, layer=1):
    spec = ModelSpec.of(model)
    return spec, spec.down_projection(layer)


@pytest.fixture
def collected(tiny):
    """(model, tokenizer, C of one of its layers)."""
    model, tok = tiny
    spec, projection = site(model)
    d = projection.d_key
    moment = SecondMoment.from_moment(torch.eye(d), 4 * d)
    moment.info = provenance(spec, tok, projection)
    return model, tok, moment


def fits(moment, model, tok, layer=1):
    """The warnings with which a C is taken, or the error."""
    spec, projection = site(model, layer)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", SecondMomentWarning)
        resolve_second_moment(moment, spec, tok, projection, torch.float32)
    return [str(w.message) for w in seen]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_of_one_checkpoint_will_do_with_a_warning(collected, dtype):
    model, tok, moment = collected
    [text] = fits(moment, copy.deepcopy(model).to(dtype), tok)
    assert "was collected on the float32 weights of this model: keys are rounded" in text
    other = copy.deepcopy(model).to(dtype)
    spec, projection = site(other)
    moment.info = provenance(spec, tok, projection)
    assert len(fits(moment, model, tok)) == 1
    assert fits(moment, other, tok) == []
    with torch.no_grad():
        other.get_input_embeddings().weight[3] *= 1.5
    with pytest.raises(SecondMomentError, match="the weights below the layer"):
        fits(moment, other, tok)
    with pytest.raises(SecondMomentError, match="the module differs"):
        fits(moment, model, tok, layer=2)


def test_new_tokens_change_no_key(collected):
    model, tok, moment = collected
    rows = len(model.get_input_embeddings().weight)
    model.resize_token_embeddings(rows + 5, mean_resizing=False)
    assert fits(moment, model, tok) == []
    assert len(fits(moment, copy.deepcopy(model).bfloat16(), tok)) == 1
    spec, projection = site(model)
    moment.info = provenance(spec, tok, projection)
    model.resize_token_embeddings(rows, mean_resizing=False)
    with pytest.raises(SecondMomentError, match="the configuration"):
        fits(moment, model, tok)


def test_an_adapter_on_the_edited_matrix_alone_changes_no_key(collected):
    peft = pytest.importorskip("peft")
    model, tok, moment = collected
    name = "down_proj" if model.config.model_type == "llama" else "c_proj"
    for layer, will_do in ((1, True), (0, False)):
        config = peft.LoraConfig(
            target_modules=rf".*\.{layer}\.mlp\.{name}",
            r=2,
            init_lora_weights=False,
            fan_in_fan_out=name == "c_proj",
        )
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
        if will_do:
            assert fits(moment, adapted, tok) == []
        else:
            with pytest.raises(SecondMomentError, match="the weights below the layer"):
                fits(moment, adapted, tok)


def test_tokenizer_hash_is_of_its_rules_not_of_its_use(tiny):
    _, tok = tiny
    before = tokenizer_hash(tok)
    tok.pad_token = tok.eos_token
    tok(["a", "a b c d"], padding=True, truncation=True, max_length=3)
    assert tokenizer_hash(tok) == before
    tok.add_tokens(["<new>"])
    assert tokenizer_hash(tok) != before
