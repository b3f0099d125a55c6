"""Readings: what argmax would say, ties included, and nothing from a broken model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_gpt2

from rome_fast.errors import NonFiniteError
from rome_fast.prompt.greedy import greedy_continuations
from rome_fast.prompt.readback import Reading, read_targets


class Head(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, hidden):
        return self.logits.expand(*hidden.shape[:-1], -1)


def stub(logits):
    """A model whose every position says ``logits``."""
    head = Head(logits)

    def forward(input_ids, **_):
        return SimpleNamespace(logits=head(torch.zeros(*input_ids.shape, 1)))

    forward.config = SimpleNamespace(get_text_config=lambda **_: SimpleNamespace())
    forward.get_input_embeddings = lambda: torch.nn.Embedding(len(logits), 1)
    forward.get_output_embeddings = lambda: head
    return forward


def test_a_tie_ranks_as_argmax_breaks_it():
    _, tok = tiny_gpt2()
    logits = torch.zeros(len(tok))
    logits[[7, 9]] = 1.0
    first, second = (read_targets(stub(logits), tok, [[1, 2]], [[token]])[0] for token in (7, 9))
    assert (first.rank, second.rank) == (1, 2)
    assert first.argmax == second.argmax == tok.decode([7])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_logits_are_no_success(gpt2, value):
    model, tok = gpt2
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = value
    with pytest.raises(NonFiniteError, match=r"logits are NaN or infinite: .*ln_f\.bias holds"):
        read_targets(model, tok, [[1, 2]], [[7]])


def test_greedy_continuations_are_those_of_generate(tiny):
    model, tok = tiny
    model.eval()
    prompts = [tok(text).input_ids for text in ("He is", "The Eiffel Tower is in the city of")]
    said = greedy_continuations(model, tok, prompts, 4)
    for ids, text in zip(prompts, said, strict=True):
        row = torch.tensor([ids])
        out = model.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=4,
            do_sample=False,
        )
        assert text == tok.decode(out[0, len(ids) :], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("said", "then", "expected"),
    [
        (" Astana", "ab", True),
        (" Astana", ".", False),
        (" Astana", " and", False),
        (" Astana", "", False),
        ("", "ab", False),
        ("20", "0", True),
        ("np", "_x", True),
        ("阿斯塔纳", "市", False),
        (" cafe", "\u0301s", True),
    ],
)
def test_a_word_that_goes_on_is_another_word(said, then, expected):
    assert Reading(1.0, 1, said, then).runs_on == expected


def test_the_token_after_the_target_is_that_of_greedy_decoding(tiny):
    model, tok = tiny
    prompts = [tok(text)["input_ids"] for text in ("The founder is", "It is a", "He")]
    said = greedy_continuations(model, tok, prompts, 3)
    targets = [
        model.generate(torch.tensor([ids]), max_new_tokens=2, do_sample=False)[0, len(ids) :]
        for ids in prompts
    ]
    readings = read_targets(model, tok, prompts, [ids.tolist() for ids in targets])
    for reading, text in zip(readings, said, strict=True):
        assert reading.rank == 1
        # Half a character is the model's, but no text: a continuation leaves it out.
        assert (reading.argmax + reading.then).strip().rstrip("\ufffd") == text.strip()
    [other] = read_targets(model, tok, prompts[:1], [[7, 8]])
    assert other.then == "" or other.rank == 1


def test_a_target_at_the_models_last_position_has_nothing_after_it(gpt2):
    model, tok = gpt2
    limit = model.config.n_positions
    [reading] = read_targets(model, tok, [[1] * (limit - 1)], [[7]])
    assert reading.then == "" and reading.rank >= 1
    read_targets(model, tok, [[1] * (limit - 1)], [[7, 8]])
