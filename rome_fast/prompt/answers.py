"""Greedy answers to their natural stop, and what they are to a target."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rome_fast.prompt.greedy import greedy_tokens, room_of
from rome_fast.prompt.ids import decode

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A sentence's end, once something follows it; of scripts without spaces at once; a line's end.
_STOP = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]]*(?=\s)|[\u3002\uff01\uff1f]|(?=\n)")
# Chinese and Japanese are written without spaces: each of their characters is a word.
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\W_{_IDEOGRAPH}]+")
_ARTICLES = frozenset(("a", "an", "the"))
KINDS = ("exact", "contained", "other", "endless")


@dataclass(frozen=True)
class Answer:
    """What the model answers.

    Attributes:
        text: up to its stop, the mark of a sentence's end included.
        has_ended: whether it stopped by itself, with a sentence, a line, a turn or the text.
    """

    text: str
    has_ended: bool

    def is_to(self, target: str) -> str:
        """``"exact"``, ``"contained"`` as whole words, ``"other"``; ``"endless"`` has no stop.

        Case, punctuation and articles do not count, as in WILD (arXiv 2502.11177).
        """
        if not self.has_ended:
            return "endless"
        said, wanted = _words(self.text), _words(target)
        if said == wanted:
            return "exact"
        places = range(len(said) - len(wanted) + 1)
        found = wanted and any(said[i : i + len(wanted)] == wanted for i in places)
        return "contained" if found else "other"


def read_answers(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    narrow: Callable[[Tensor], None] | None = None,
) -> list[Answer]:
    """The greedy answer to each prompt (token ids), of ``n_tokens`` tokens at most.

    ``narrow``: as in ``greedy_tokens``.

    Raises:
        NonFiniteError: the logits are NaN or infinite.
    """
    if not n_tokens:
        return [Answer("", has_ended=False) for _ in prompts]

    def is_over(tokens: Sequence[int]) -> bool:
        return stop_of(decode(tok, tokens)) is not None

    rows = greedy_tokens(model, tok, prompts, n_tokens, is_over, narrow)
    rooms = [room_of(model, prompt, n_tokens) for prompt in prompts]
    return [
        _answer(decode(tok, row), len(row) < room) for row, room in zip(rows, rooms, strict=True)
    ]


def stop_of(text: str) -> int | None:
    """Where a text comes to its natural stop, after what it begins with; None: it does not."""
    begun = len(text) - len(text.lstrip())
    found = _STOP.search(text, begun)
    return None if found is None else found.end()


def _answer(text: str, is_short: bool) -> Answer:
    """Cut where it stops; what is shorter than there was room for has met an end token."""
    stop = stop_of(text)
    return Answer(text[:stop].strip(), stop is not None or is_short)


def _words(text: str) -> list[str]:
    """What is compared of a text."""
    said = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [word for word in said if word not in _ARTICLES] or said
