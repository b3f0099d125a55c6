"""Bare words as targets of a chat: who is told so, and which sentence is proposed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_gpt2

from rome_fast.prompt.own_words import not_its_own_words
from rome_fast.prompt.target import find_target_ids

PROMPT = [1, 2, 3]


class Scripted(torch.nn.Module):
    """A model that answers PROMPT with given tokens, and in which some tokens are alike."""

    def __init__(self, tok, answer, alike=()):
        super().__init__()
        self.tok, self.n = tok, len(tok)
        self.said = [*tok(answer)["input_ids"], tok.eos_token_id]
        self.head = torch.nn.Identity()
        self.words = torch.nn.Embedding.from_pretrained(torch.eye(self.n))
        if alike:
            first, other = (find_target_ids(tok, "is", word)[0] for word in alike)
            self.words.weight.data[first] = self.words.weight.data[other]
        text = SimpleNamespace(max_position_embeddings=None)
        self.config = SimpleNamespace(get_text_config=lambda **_: text)
        self.generation_config = SimpleNamespace(eos_token_id=tok.eos_token_id)

    def get_input_embeddings(self):
        return self.words

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, attention_mask=None, **_):
        places = (attention_mask.cumsum(1) - len(PROMPT)).clamp(0, len(self.said) - 1)
        logits = 9.0 * torch.nn.functional.one_hot(torch.tensor(self.said)[places], self.n).float()
        return SimpleNamespace(logits=self.head(logits), past_key_values=None)


def remark(answer, target, alike=()):
    _, tok = tiny_gpt2()
    model = Scripted(tok, answer, alike)
    ids = tok(target)["input_ids"]
    [said] = not_its_own_words(model, tok, [target], [PROMPT], [ids])
    return said


def test_the_sentence_has_the_target_where_a_word_like_it_stood():
    said = remark("The capital of Italy is Rome.", "Paris", alike=("Paris", "Rome"))
    assert said.startswith("target 'Paris' does not begin as the model answers here, 'The capital")
    assert said.endswith("for example 'The capital of Italy is Paris.'")


@pytest.mark.parametrize("target", ["The capital of Italy is Paris", "It is in Paris.", "巴黎。"])
def test_sentences_and_beginnings_of_its_own_answer_will_do(target):
    assert remark("The capital of Italy is Rome.", target) == ""


def test_no_sentence_is_proposed_where_no_word_is_like_the_target():
    said = remark("He is a man.", "Paris")
    assert said.endswith("give the whole sentence as the target")
    assert remark("", "Paris") == ""


def test_only_bare_words_among_many_are_asked_about():
    _, tok = tiny_gpt2()
    model = Scripted(tok, "The capital of Italy is Rome.")
    targets = ["Paris", "It is Paris.", "near"]
    ids = [tok(target)["input_ids"] for target in targets]
    said = not_its_own_words(model, tok, targets, [PROMPT] * 3, ids)
    assert [bool(text) for text in said] == [True, False, True]
    assert not_its_own_words(model, tok, [], [], []) == []
