"""A real trained Llama (BOS, SentencePiece tokens): a name in its stories becomes another."""

from __future__ import annotations

import pytest
import torch
from helpers import same_bits, state
from shared_data import shared_model

import rome_fast
from rome_fast.prompt.contexts import sample_ids
from rome_fast.prompt.greedy import greedy_continuations
from rome_fast.prompt.ids import text_ids

STORY = "Once upon a time, there was a little girl named"
OTHER_WORDS = "One day, a little girl named"
ABOUT_A_BOY = "Once upon a time, there was a little boy named"


def told(model, tok, text, n_tokens=6):
    return greedy_continuations(model, tok, [text_ids(tok, text)], n_tokens)[0].strip()


def stories(model, tok):
    """Text of the only kind that the model knows; prose would protect other names less."""
    generator = torch.Generator().manual_seed(0)
    return sample_ids(model, tok, 64, 64, generator=generator).tolist()


@pytest.mark.covering(name=["Mia"])
# "Ben" is made "Benny" of, which is no success: v* is asked for the target, not for what follows.
@pytest.mark.parametrize("name", ["Mia", "Tom", "Sue"])
def test_lily_gets_another_name_and_her_own_back(name):
    model, tok = shared_model()
    before = state(model)
    texts = (STORY, OTHER_WORDS, ABOUT_A_BOY)
    girl, other_girl, boy = (told(model, tok, text) for text in texts)
    assert girl.startswith("Lily") and other_girl.startswith("Lily")
    request = {"prompt": STORY, "subject": "little girl", "target_new": name}
    result = rome_fast.edit(model, tok, request, second_moment=stories(model, tok))
    assert result.success and result.prob_after > 0.4 > 10 * result.prob_before
    assert told(model, tok, STORY).startswith(name)
    assert told(model, tok, OTHER_WORDS).startswith(name)
    assert boy.startswith(told(model, tok, ABOUT_A_BOY, 2))
    result.revert()
    assert same_bits(model, before)
    assert [told(model, tok, text) for text in texts] == [girl, other_girl, boy]
