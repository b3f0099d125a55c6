"""Greedy answers to their natural stop, and what they are to a target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rome_fast.prompt.ids import decode
from rome_fast.prompt.readback import greedy_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A sentence's end, once something follows it; of scripts without spaces at once; a line's end.
_STOP = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]]*(?=\s)|[\u3002\uff01\uff1f]|(?=\n)")
_MARKS = " \t\n.,;:!?\u2026\u3002\uff01\uff1f\uff0c\"'\u201c\u201d\u2018\u2019()[]"
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
        """``"exact"``, ``"contained"`` as whole words, ``"other"``; ``"endless"`` has no stop."""
        if not self.has_ended:
            return "endless"
        said, wanted = self.text.strip(_MARKS), target.strip(_MARKS)
        if said == wanted:
            return "exact"
        found = re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", said)
        return "contained" if wanted and found else "other"


def read_answers(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
) -> list[Answer]:
    """The greedy answer to each prompt (token ids), of ``n_tokens`` tokens at most.

    Raises:
        NonFiniteError: the logits are NaN or infinite.
    """
    if not n_tokens:
        return [Answer("", has_ended=False) for _ in prompts]

    def is_over(tokens: Sequence[int]) -> bool:
        return stop_of(decode(tok, tokens)) is not None

    rows = greedy_tokens(model, tok, prompts, n_tokens, is_over)
    return [_answer(decode(tok, row), len(row) < n_tokens) for row in rows]


def stop_of(text: str) -> int | None:
    """Where a text comes to its natural stop, after what it begins with; None: it does not."""
    begun = len(text) - len(text.lstrip())
    found = _STOP.search(text, begun)
    return None if found is None else found.end()


def _answer(text: str, is_short: bool) -> Answer:
    """Cut where it stops; what is shorter than asked for has met an end token."""
    stop = stop_of(text)
    return Answer(text[:stop].strip(), stop is not None or is_short)
