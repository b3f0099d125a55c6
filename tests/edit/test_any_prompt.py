"""Whole edits of prompts in many scripts, of code, and of 2,000 tokens."""

from __future__ import annotations

import pytest
import torch
from helpers import same_bits, state
from tiny import tiny_llama

import rome_fast
from rome_fast.errors import InvalidRequestError

PROMPTS = {
    "Chinese": ("中国的首都是{}", "北京", "上海"),
    "Japanese": ("日本の首都は{}", "東京", "京都"),
    "Thai": ("เมืองหลวงคือ{}", "กรุงเทพ", "ลำปาง"),
    "Korean": ("대한민국의 수도 {}", "서울", "부산"),
    "Arabic": ("يقع البرج في {}", "باريس", "روما"),
    "Hebrew": ("העיר היא {}", "ירושלים", "חיפה"),
    "German": ("Die Stadt heißt {}", "Köln", "Zürich"),
    "decomposed": ("Die Stadt heißt {}", "Ko\u0308ln", "Zu\u0308rich"),
    "emoji": ("She is the 👍🏽 {}", "👩\u200d🚀", "👨\u200d👩\u200d👧"),
    "code": ('{"a%s": {"b": "%d"}, \'c\':\n "{}', "Ada", '{0}" % x'),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_any_text_can_be_edited(gpt2, settings, name):
    model, tok = gpt2
    prompt, subject, target = PROMPTS[name]
    text, before = prompt.replace("{}", subject, 1), state(model)
    span = (prompt.index("{}"), len(text))
    request = {"prompt": text, "span": span, "target": target}
    result = rome_fast.edit(model, tok, request, **settings)
    assert result.request.text == text and result.request.subject == subject
    assert "".join(result.target_tokens).replace("\ufffd", "").strip() == target
    assert subject.endswith(result.subject_token.strip().replace("\ufffd", ""))
    assert result.losses[-1] < result.losses[0]
    result.revert()
    assert same_bits(model, before)


def test_a_prompt_of_2000_tokens_is_edited_or_the_limit_is_named(settings):
    model, tok = tiny_llama()
    prompt = "The weather was fine in the north. " * 180 + "The founder is {}"
    request = {"prompt": prompt, "subject": "Steve Jobs", "target": "capital"}
    with pytest.raises(InvalidRequestError, match="but the model takes 128: shorten the prompt"):
        rome_fast.edit(model, tok, request, **settings)
    model.config.max_position_embeddings = 4096
    settings["hparams"] = settings["hparams"].replace(v_num_grad_steps=3)
    result = rome_fast.edit(model, tok, request, **{**settings, "context_templates": ["{}"]})
    assert result.diagnostics.lookup_index >= 2000
    assert torch.isfinite(result.update.v).all() and result.losses[-1] < result.losses[0]
