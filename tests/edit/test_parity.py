"""ΔW against the independent float64 oracle: same templates, same C, every variant and model."""

from __future__ import annotations

import pytest
import torch
from oracle import oracle_edit
from shared_data import shared_model
from tiny import tiny_gpt2, tiny_llama

import rome_fast
from rome_fast.model.spec import ModelSpec
from rome_fast.moment.collect.collector import collect_second_moment

CONTEXTS = ["{}", "The weather was fine. {}", "He said so in the morning. {}", "It is. {}"]
TEXTS = [
    "The museum opened in spring, and many people came to see the pictures of the old town.",
    "A river runs through the city; the bridge was built by a man from the north.",
    "She plays the piano and he plays the violin, both in the same house by the sea.",
    "Numbers such as 1, 2, 3, 5, 8 and 13 follow a rule that children learn early on.",
]
MODELS = {
    "tiny-gpt2": tiny_gpt2,
    "tiny-llama": tiny_llama,
    "embedded": lambda: rome_fast.demo.load()[:2],
    "stories260K": shared_model,
}


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


@pytest.fixture(params=MODELS, scope="module")
def loaded(request):
    return MODELS[request.param]()


def edit_both(model, tok, variant, *, fact_token="subject_last", target="France", steps=8):
    request = {"prompt": "The mother of {} came from", "subject": "Marie Curie", "target": target}
    hparams = rome_fast.RomeHparams(
        layers=[1], v_num_grad_steps=steps, fact_token=fact_token, variant=variant
    )
    projection = ModelSpec.of(model).down_projection(1)
    moment = collect_second_moment(
        model, tok, TEXTS * 3, 1, tokens=10_000, dtype=torch.float64, progress=False
    )[1]
    # Few texts leave C singular; a ridge makes it a fair matrix for both sides.
    matrix = moment.moment() + 0.05 * moment.moment().diagonal().mean() * torch.eye(moment.d_key)
    second_moment = rome_fast.SecondMoment.from_moment(matrix, moment.count)
    expected = oracle_edit(
        model,
        tok,
        prompt=request["prompt"],
        subject=request["subject"],
        target=target,
        context_templates=CONTEXTS,
        second_moment=second_moment.moment(),
        down_projection=projection.name,
        fact_token=fact_token,
        steps=steps,
        variant=variant,
    )
    with rome_fast.trial(
        model,
        tok,
        request,
        hparams,
        second_moment=second_moment,
        context_templates=CONTEXTS,
    ) as result:
        return result, expected


@pytest.mark.covering
@pytest.mark.parametrize("variant", ["original", "mean_key", "prompt_key", "both_keys"])
def test_update_matches_oracle(loaded, variant):
    result, expected = edit_both(*loaded, variant)
    assert result.losses == pytest.approx(expected.losses, rel=1e-4)
    assert cosine(result.update.dense(), expected.dense) >= 0.9999
    assert result.update_norm == pytest.approx(float(expected.dense.norm()), rel=1e-3)


@pytest.mark.covering
@pytest.mark.parametrize(
    "fact_token", ["subject_first", "subject_first_after_last", "last", "subject_last"]
)
def test_every_fact_token_matches_oracle(loaded, fact_token):
    result, expected = edit_both(*loaded, "original", fact_token=fact_token, target="the north")
    assert result.losses == pytest.approx(expected.losses, rel=1e-4)
    assert cosine(result.update.dense(), expected.dense) >= 0.9999
