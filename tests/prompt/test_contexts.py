"""Context templates: seeded, the model's own, clean."""

from __future__ import annotations

import torch
from tiny import tiny_gpt2

from rome_fast.hparams import RomeHparams
from rome_fast.prompt.contexts import (
    WRITTEN_CONTEXTS,
    check_context_templates,
    contexts_for,
    sample_context_templates,
    sample_ids,
)


def test_templates_have_the_reference_form(tiny):
    model, tok = tiny
    templates = sample_context_templates(model, tok, [[5, 4], [10, 3]], seed=3)
    assert templates[0] == "{}"
    assert 1 < len(templates) <= 8
    for template in templates[1:]:
        assert template.endswith(". {}")
        assert template.count("{") == template.count("}") == 1
        assert template[0] != " " and "\n" not in template


def test_seed_decides_and_nothing_is_kept_between_models(gpt2):
    model, tok = gpt2
    first = sample_context_templates(model, tok, [[5, 4]], seed=0)
    assert sample_context_templates(model, tok, [[5, 4]], seed=0) == first
    assert sample_context_templates(model, tok, [[5, 4]], seed=1) != first
    other, _ = tiny_gpt2(seed=5)
    assert sample_context_templates(other, tok, [[5, 4]], seed=0) != first
    torch.manual_seed(99)
    assert sample_context_templates(model, tok, [[5, 4]], seed=0) == first


def test_samples_follow_the_models_distribution(gpt2):
    """First tokens drawn often enough have the frequencies that the model gives them."""
    model, tok = gpt2
    generator = torch.Generator().manual_seed(0)
    drawn = sample_ids(model, tok, 4000, 1, generator=generator)[:, 0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[tok.bos_token_id]])).logits[0, -1]
    logits[tok.all_special_ids] = float("-inf")
    expected = logits.softmax(-1)
    counts = torch.bincount(drawn, minlength=len(expected)) / len(drawn)
    assert not counts[tok.all_special_ids].any()
    assert float((counts - expected).abs().sum() / 2) < 0.1


def test_top_k_draws_only_the_likeliest(gpt2):
    model, tok = gpt2
    drawn = sample_ids(model, tok, 500, 1, generator=torch.Generator().manual_seed(0), top_k=5)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[tok.bos_token_id]])).logits[0, -1]
    logits[tok.all_special_ids] = float("-inf")
    assert set(drawn.flatten().tolist()) <= set(logits.topk(5).indices.tolist())


def test_written_contexts_ask_no_model_and_sampled_ones_are_those_of_the_seed(gpt2):
    written = contexts_for(None, None, RomeHparams([1], context_template_length_params=None))
    assert written == check_context_templates(WRITTEN_CONTEXTS) and written[0] == "{}"
    sampled = RomeHparams([1], context_template_length_params=[[5, 2]], seed=3)
    assert contexts_for(*gpt2, sampled) == sample_context_templates(*gpt2, [[5, 2]], seed=3)
