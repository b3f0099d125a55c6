"""The token of a text where its subject ends, or begins.

A subject is found by its characters in the whole text, never by tokenising pieces: tokenizers
merge across spaces, add BOS, and split Chinese characters into bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from rome_fast.errors import TokenizerMismatchError
from rome_fast.prompt.ids import INCOMPLETE, begin, decode, leading_ids, skeleton, whole_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A token that completes the subject may extend this many characters beyond it.
_REACH = 32


class Passage(NamedTuple):
    """A text as the model reads it, and the characters that are its subject.

    Attributes:
        in_chat: a chat template has rendered it, so that it spells its special tokens.
    """

    text: str
    start: int
    end: int
    in_chat: bool = False


def locate_subject(
    tok: PreTrainedTokenizerBase, passage: Passage, fact_token: str
) -> tuple[list[int], int]:
    """Tokenise a passage and find its lookup token.

    Returns:
        The ids of the whole text (with the BOS that the tokenizer adds) and the index of the token
        that ``fact_token`` names.

    Raises:
        TokenizerMismatchError: the token cannot be found.
    """
    encoded = tok(
        passage.text,
        add_special_tokens=False,
        return_offsets_mapping=tok.is_fast,
        verbose=False,
    )
    own = list(encoded["input_ids"])
    ids = own if passage.in_chat else begin(leading_ids(tok), own)
    n_leading = len(ids) - len(own)
    if fact_token == "last":
        return ids, len(ids) - 1
    end = passage.start + 1 if fact_token == "subject_first" else passage.end
    index = n_leading + _token_at(tok, own, encoded.get("offset_mapping", ()), passage.text, end)
    return ids, min(index + 1, len(ids) - 1) if fact_token == "subject_first_after_last" else index


def _token_at(
    tok: PreTrainedTokenizerBase,
    ids: list[int],
    offsets: Sequence[tuple[int, int]],
    text: str,
    end: int,
) -> int:
    """Index of the token that completes ``text[:end]``.

    Offsets are a hint only: some tokenizers report (0, 0) or the offsets of a normalised text, so
    the answer must also decode to the text up to ``end``. Where the tokens do not decode to the
    text (unknown tokens, dropped accents), beginnings of the text are tokenised and compared.
    """
    wanted = skeleton(text[:end])

    def covers(n: int) -> bool:
        if skeleton(whole_text(tok, ids[:n], special=True)).startswith(wanted):
            return True
        # The token that completes the wanted text may hold the first bytes of the next character.
        text = decode(tok, ids[:n], special=True)
        return text.endswith(INCOMPLETE) and skeleton(text.rstrip(INCOMPLETE)).startswith(wanted)

    hint = [i for i, (a, b) in enumerate(offsets) if a < end <= b][-1:]
    if hint and covers(hint[0] + 1) and not covers(hint[0]):
        return hint[0]
    if covers(len(ids)):
        return bisect_left(range(1, len(ids) + 1), True, key=covers)
    found = _token_by_cuts(tok, ids, text, end)
    if found is None:
        raise TokenizerMismatchError(
            f"the tokens of {text[:200]!r} do not decode to it, nor do those of its beginnings "
            f"agree with them, so the token that ends {text[max(0, end - 20) : end]!r} cannot be "
            f"found: {type(tok).__name__} gave {tok.convert_ids_to_tokens(ids)[:50]}"
        )
    return found


def _token_by_cuts(tok: PreTrainedTokenizerBase, ids: list[int], text: str, end: int) -> int | None:
    """The same, by tokenising the text cut at ``end`` or a little behind it.

    If a cut text's tokens are the first n of the whole text's, token n - 1 ends at the cut. If the
    n - 1 tokens before it also begin the text cut at ``end``, they end by ``end``, so that token
    n - 1 is the one that completes ``text[:end]``.
    """

    def cut_at(position: int) -> list[int]:
        return list(tok(text[:position], add_special_tokens=False, verbose=False)["input_ids"])

    pairs = zip(cut_at(end), ids, strict=False)
    n_same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    for position in range(end, min(end + _REACH, len(text)) + 1):
        cut = cut_at(position)
        if cut and cut == ids[: len(cut)] and len(cut) - 1 <= n_same:
            return len(cut) - 1
    return None
