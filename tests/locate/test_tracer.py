"""Many restored states in one forward against one at a time, in every family."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, VOCABULARY, lively_family
from one_cell import one_cell
from structures import STRUCTURES
from transformers import MixtralConfig, MixtralForCausalLM

from rome_fast.errors import NonFiniteError, UnsupportedModelError
from rome_fast.locate import tracer as tracer_module
from rome_fast.locate.parts import KINDS, find_part
from rome_fast.locate.tracer import Cell, Tracer
from rome_fast.model.spec import ModelSpec

IDS, SUBJECT = [7, 3, 41, 12, 5, 23], (1, 3)
WINDOWS = {"hidden": [range(i, i + 1) for i in range(3)], "mlp": [range(0, 2), range(1, 3)]}
WINDOWS["attn"] = WINDOWS["mlp"]


def noise(width, samples=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 2, width, generator=generator, dtype=torch.float64)


def prepared(family, dtype=torch.float64):
    model = lively_family(family, VOCABULARY).to(dtype)
    return model, noise(model.get_input_embeddings().weight.shape[1])


@pytest.mark.covering(family=STRUCTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_one_state_at_a_time(family):
    # transformers 4 cannot mask MPT's attention in float64, and casts GPT-J's logits to float32.
    model, added = prepared(family, torch.float32 if family == "Mpt" else torch.float64)
    tracer = Tracer(ModelSpec.of(model), IDS, SUBJECT, added, KINDS)
    high, low = one_cell(model, family, IDS, SUBJECT, added, "hidden", 0, [])
    assert (tracer.high, tracer.low) == pytest.approx((high, low), rel=1e-5)
    cells = [Cell(kind, t, layers) for kind in KINDS for layers in WINDOWS[kind] for t in (1, 2, 4)]
    expected = [
        one_cell(model, family, IDS, SUBJECT, added, c.kind, c.token, c.layers)[1] for c in cells
    ]
    assert tracer.scores(cells) == pytest.approx(expected, rel=1e-5)
    for kind in KINDS:  # each does something, or the comparison would be of nothing
        scores = [e for c, e in zip(cells, expected, strict=True) if c.kind == kind]
        assert max(abs(score - low) for score in scores) > 1e-4, kind


def test_batches_of_any_size_give_the_same(monkeypatch):
    model, added = prepared("GPT2")
    tracer = Tracer(ModelSpec.of(model), IDS, SUBJECT, added, KINDS)
    cells = [Cell(kind, t, layers) for kind in KINDS for layers in WINDOWS[kind] for t in range(6)]
    whole, told = tracer.scores(cells), []
    monkeypatch.setattr(tracer_module, "BATCH_TOKENS", {"cpu": 5 * len(added) * len(IDS)})
    assert tracer.scores(cells, told.append) == pytest.approx(whole, rel=1e-12)
    assert told == [5] * (len(cells) // 5) + [len(cells) % 5]
    monkeypatch.setattr(tracer_module, "BATCH_TOKENS", {"cpu": 1})
    assert tracer.scores(cells[:3]) == pytest.approx(whole[:3], rel=1e-12)


def test_blocks_below_the_lowest_restored_layer_do_not_run():
    model, added = prepared("Llama")
    tracer = Tracer(ModelSpec.of(model), IDS, SUBJECT, added, ["mlp"])
    ran = []
    for layer, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    tracer.scores([Cell("mlp", 2, range(1, 3)), Cell("mlp", 2, range(2, 3))])
    assert ran == [1, 2]


def test_float32_is_float64_to_rounding():
    cells = [Cell(kind, 2, WINDOWS[kind][1]) for kind in KINDS]
    single, double = (
        Tracer(ModelSpec.of(model), IDS, SUBJECT, added, KINDS).scores(cells)
        for model, added in (prepared("GPT2", torch.float32), prepared("GPT2"))
    )
    assert single == pytest.approx(double, rel=1e-4)
    assert single != double


def test_the_model_is_itself_afterwards_also_after_an_error():
    model, added = prepared("Bloom")
    before = model(torch.tensor([IDS])).logits
    tracer = Tracer(ModelSpec.of(model), IDS, SUBJECT, added, KINDS)
    handle = model.transformer.ln_f.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tracer.scores([Cell("mlp", 2, range(1, 2))])
    handle.remove()
    assert torch.equal(model(torch.tensor([IDS])).logits, before)
    assert not any(m._forward_hooks or "forward" in vars(m) for m in model.modules())


def test_experts_are_traced_as_one_mlp():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    spec = ModelSpec.of(MixtralForCausalLM(config).eval())
    assert spec.mlp(0) is None
    part = find_part(spec, 0, "mlp")
    assert "SparseMoe" in type(part).__name__
    tracer = Tracer(spec, IDS, SUBJECT, 3 * noise(32), ["mlp"])
    [everything] = tracer.scores([Cell("mlp", 2, range(2))])
    assert everything != tracer.low


@pytest.mark.parametrize("kind", ["attn", "mlp"])
def test_a_block_without_the_module_is_named(kind):
    model, _ = prepared("Llama")
    delattr(model.model.layers[1], {"attn": "self_attn", "mlp": "mlp"}[kind])
    with pytest.raises(UnsupportedModelError, match=f"'{kind}' .* layer 1 of LlamaForCausalLM"):
        [find_part(ModelSpec.of(model), layer, kind) for layer in range(3)]


def test_nan_is_named():
    model, added = prepared("GPT2")
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN"):
        Tracer(ModelSpec.of(model), IDS, SUBJECT, added, KINDS)
