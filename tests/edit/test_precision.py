"""Every dtype of weights; compute_dtype="bfloat16", whose search runs copies of the weights."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
import transformers
from families import FAMILIES
from family_checks import case, expected_of, off_by, options
from helpers import REQUEST, same_bits, state
from prepared import prepared, two_edits
from structures import STRUCTURES, built
from tiny import tiny_llama

import rome_fast
from rome_fast.model import precision
from rome_fast.model.intercept import hidden_of
from rome_fast.model.precision import Bfloat16Weights, wide_norm
from rome_fast.model.spec import ModelSpec
from rome_fast.update import solve
from rome_fast.value import window
from rome_fast.value.first_pass import run_first_pass
from rome_fast.value.search import Search
from rome_fast.value.suffix_forward import SuffixForward

# bfloat16 rounds to 2^-8 of a number, some times over between a block and the loss.
ROUNDING = 2.0**-5
OTHER = {**REQUEST, "target_new": "river"}
# Of the losses, and of the update, against the oracle in float64 on the same weights.
TOLERANCES = {
    torch.float64: (1e-5, 1e-5),
    torch.float32: (1e-4, 1e-4),
    torch.float16: (2e-3, 0.02),
    torch.bfloat16: (1e-2, 0.2),
}


@pytest.fixture
def in_bfloat16(settings):
    return {**settings, "hparams": settings["hparams"].replace(compute_dtype="bfloat16")}


@pytest.fixture
def gemma2():
    """A family whose edited block runs in the search: a norm follows its MLP."""
    _, tok = tiny_llama()
    torch.manual_seed(0)
    config = transformers.Gemma2Config(**{**FAMILIES["Gemma2"], "vocab_size": len(tok)})
    model = transformers.Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # freshly drawn, attention is next to uniform
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model, tok


def obstacles(*results):
    return [text for result in results for text in result.warnings if "whole model" in text]


def near(result, expected):
    """The same search but for rounding, and the same change of the weight."""
    assert result.losses == pytest.approx(expected.losses, rel=ROUNDING)
    assert result.losses != expected.losses
    a, b = (r.update.dense().double().flatten() for r in (result, expected))
    assert a @ b >= 0.999 * a.norm() * b.norm()
    assert a.norm() == pytest.approx(b.norm(), rel=ROUNDING)


def head_dtypes(model):
    """The dtypes of the logits, as they will be computed."""
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    return seen


def test_an_edit_is_that_of_float32_but_for_rounding(tiny, settings, in_bfloat16):
    model, tok = tiny
    with rome_fast.trial(model, tok, REQUEST, **settings) as expected:
        pass
    seen = head_dtypes(model)
    with rome_fast.trial(model, tok, REQUEST, **in_bfloat16) as result:
        near(result, expected)
        assert result.rank_after == 1 and not obstacles(result)
    # Every step of the search, and neither the first pass nor the reading afterwards.
    assert seen.count(torch.bfloat16) == len(result.losses)
    assert seen[0] == seen[-1] == torch.float32


def test_a_window_too(tiny, settings, in_bfloat16):
    model, tok = tiny
    requests = [REQUEST, {**OTHER, "prompt": "It is {}", "subject": "Marie Curie"}]
    order = {"order": "independent", "progress": False}
    with rome_fast.trial(model, tok, requests, **settings, **order) as expected:
        pass
    with rome_fast.trial(model, tok, requests, **in_bfloat16, **order) as results:
        assert [result.window for result in results] == [2, 2]
        assert not obstacles(*results)
        for pair in zip(results, expected, strict=True):
            near(*pair)


def test_nothing_but_the_edited_matrix_changes(tiny, in_bfloat16):
    model, tok = tiny
    before = state(model)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    result = rome_fast.edit(model, tok, REQUEST, **in_bfloat16)
    after = model.state_dict()
    assert {name: p.dtype for name, p in after.items()} == {n: p.dtype for n, p in before.items()}
    changed = [name for name, p in after.items() if not torch.equal(p, before[name])]
    assert changed == [result.weight_name]
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert result.update.u.dtype == result.update.v.dtype == torch.float32
    result.revert()
    assert same_bits(model, before)


def test_copies_end_with_the_call(gpt2, in_bfloat16, monkeypatch):
    model, tok = gpt2
    made = []

    class Watched(Bfloat16Weights):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(weakref.ref(self))
            made.extend(weakref.ref(copy) for copy in self.current().values())

    monkeypatch.setattr(window, "Bfloat16Weights", Watched)
    result = rome_fast.edit(model, tok, REQUEST, **in_bfloat16)
    gc.collect()
    assert result.success and len(made) > 1
    assert [reference() for reference in made] == [None] * len(made)


def test_blocks_below_are_not_copied_and_the_edited_one_is_each_time(gpt2):
    model, _ = gpt2
    copies = Bfloat16Weights(ModelSpec.of(model), ModelSpec.of(model).down_projection(1))
    name, above = "transformer.h.1.mlp.c_proj.weight", "transformer.h.2.mlp.c_proj.weight"
    first = dict(copies.current())
    assert {copy.dtype for copy in first.values()} == {torch.bfloat16}
    assert set(dict(model.named_parameters())) - set(first) == {
        other for other in dict(model.named_parameters()) if other.startswith("transformer.h.0.")
    }
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.mul_(2)
    before = {key: copy.clone() for key, copy in first.items()}
    second = copies.current()
    assert torch.equal(second[name], 2 * before[name])
    assert torch.equal(second[above], before[above])
    # A captured graph reads them where they are.
    assert all(second[key] is copy for key, copy in first.items())


def test_a_later_edit_runs_the_edited_block_as_it_has_become(gemma2, settings, in_bfloat16):
    """Stale, it would not give the logits of the first pass, and the whole model would run."""
    model, tok = gemma2
    requests = [REQUEST, OTHER]
    with rome_fast.trial(model, tok, requests, progress=False, **settings) as expected:
        pass
    with rome_fast.trial(model, tok, requests, progress=False, **in_bfloat16) as results:
        assert not obstacles(*results, *expected)
        for pair in zip(results, expected, strict=True):
            near(*pair)


def test_a_model_in_bfloat16_is_searched_as_it_is(gpt2, settings, in_bfloat16, monkeypatch):
    model, tok = gpt2
    model.bfloat16()
    with rome_fast.trial(model, tok, REQUEST, **settings) as expected:
        pass
    monkeypatch.setattr(window, "Bfloat16Weights", None)
    with rome_fast.trial(model, tok, REQUEST, **in_bfloat16) as result:
        assert result.losses == expected.losses
        assert torch.equal(result.update.dense(), expected.update.dense())


# In float64 Gemma 2's own attention makes NaN of padding beyond its window of 4 tokens.
CASES = [(f, d) for f in STRUCTURES for d in TOLERANCES if (f, d) != ("Gemma2", torch.float64)]


@pytest.mark.covering("family", "dtype")
@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_an_edit_in_any_dtype_is_the_oracles(family, dtype):
    of_losses, of_update = TOLERANCES[dtype]
    model, tok = built(family, STRUCTURES[family])
    model = copy.deepcopy(model).to(dtype)
    settings = options(model, 1)
    expected = expected_of(model, tok, case(), settings["hparams"])
    with rome_fast.trial(model, tok, case(), **settings) as result:
        assert not obstacles(result)
    assert result.losses == pytest.approx(expected.losses, rel=of_losses)
    assert off_by(result.update.dense(), expected.dense) <= of_update


@pytest.mark.covering
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_what_is_solved_is_float32_or_wider(tiny, settings, dtype, monkeypatch):
    model, tok = tiny
    model.to(dtype)
    seen = []

    def spied(place, name, watch):
        own = getattr(place, name)

        def spy(*arguments, **options):
            found = own(*arguments, **options)
            seen.extend(watch(found, *arguments))
            return found

        monkeypatch.setattr(place, name, spy)

    spied(window, "mean_keys", lambda found, *_: vars(found[0]).values())
    spied(window, "optimize_values", lambda found, *_: [found[0].value_delta])
    # The weight's sum, the factor, both keys and the residual.
    spied(solve.ops, "rank_one_solve_apply_", lambda _, *given: given)
    keys = torch.randn(600, ModelSpec.of(model).down_projection(1).d_key)
    settings["second_moment"] = rome_fast.SecondMoment.from_moment(keys.T @ keys / 600, 600)
    with rome_fast.trial(model, tok, REQUEST, **settings) as result:
        pass
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert len(seen) == 4 + 1 + 5
    assert {x.dtype for x in seen} <= {wide, torch.float64}
    assert result.update.u.dtype == result.update.v.dtype == wide


def test_a_norm_beyond_float16_is_a_number():
    x = torch.full((3000, 1000), 40.0, dtype=torch.float16)
    assert not x.norm().isfinite()
    assert float(wide_norm(x)) == pytest.approx(40 * 3e6**0.5)
    assert wide_norm(torch.ones(3, dtype=torch.float64)).dtype == torch.float64


def test_activations_that_are_large_for_float16_do_not_lengthen_the_search():
    """Hidden states above 256, whose squares float16 does not hold: the edited block stays out."""
    batch = two_edits()
    model, projection, _ = prepared("GPT2", 1, batch)
    model.transformer.wte.weight.mul_(600 / model.transformer.wte.weight.abs().max())
    model.half()
    first = run_first_pass(ModelSpec.of(model), projection, batch)
    assert hidden_of(first.below).abs().max() > 300
    assert SuffixForward.of(ModelSpec.of(model), projection, batch, first).n_silent == 2
    # Logits whose norm float16 does not hold either.
    model.lm_head.weight = torch.nn.Parameter(60 * torch.ones_like(model.lm_head.weight))
    model.transformer.ln_f.bias.fill_(30)
    first = run_first_pass(ModelSpec.of(model), projection, batch)
    assert first.logits.isfinite().all() and not first.logits.norm().isfinite()
    search = Search(ModelSpec.of(model), projection, batch, first)
    search.logits(torch.zeros(2, 32))
    assert not search.obstacle
    search = Search(
        ModelSpec.of(model), projection, batch, replace(first, logits=0.9 * first.logits)
    )
    search.logits(torch.zeros(2, 32))
    assert "off by 0.1" in search.obstacle


def test_the_last_loss_is_of_the_models_own_weights(tiny, settings, in_bfloat16):
    model, tok = tiny
    losses = []
    for given in (settings, in_bfloat16):
        hparams = given["hparams"].replace(v_num_grad_steps=1)
        with rome_fast.trial(model, tok, REQUEST, **{**given, "hparams": hparams}) as result:
            losses.append(result.losses)
    assert len(losses[0]) == 1 and losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("is_fast", [True, False])
def test_auto_takes_bfloat16_where_a_processor_multiplies_it(tiny, settings, monkeypatch, is_fast):
    model, tok = tiny
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_fast, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    hparams = settings["hparams"].replace(compute_dtype="auto")
    seen = head_dtypes(model)
    with rome_fast.trial(model, tok, REQUEST, **{**settings, "hparams": hparams}):
        assert (torch.bfloat16 in seen) == is_fast


def test_auto_makes_no_copies_that_do_not_fit_or_gain_nothing(gpt2, monkeypatch):
    model, _ = gpt2
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    def pays():
        spec = ModelSpec.of(model)
        return precision.bfloat16_pays(spec, spec.down_projection(1))

    assert pays()
    monkeypatch.setattr(precision, "free_bytes", lambda device: 1000)
    assert not pays()
    monkeypatch.setattr(precision, "free_bytes", lambda device: None)
    assert pays()
    model.bfloat16()
    assert not pays()
    model.double()
    assert not pays()
    model.float()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not pays()
