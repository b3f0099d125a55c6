"""Texts -> token ids and back, for any tokenizer; its settings are never changed."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# What decoding gives for bytes that do not form a whole character yet.
INCOMPLETE = "\ufffd"


def text_ids(tok: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text that is to be continued: with BOS if the tokenizer adds one, never with EOS."""
    return all_text_ids(tok, [text])[0]


def all_text_ids(
    tok: PreTrainedTokenizerBase, texts: Sequence[str], in_chat: Sequence[bool] | None = None
) -> list[list[int]]:
    """``text_ids`` of each text, in one call of the tokenizer, without its warning on long texts.

    Args:
        in_chat: which texts a chat template has rendered, so that they spell their special tokens.
    """
    if not texts:
        return []
    rows = tok(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    leading = leading_ids(tok)
    is_whole = in_chat or [False] * len(rows)
    return [
        list(row) if whole else begin(leading, row)
        for row, whole in zip(rows, is_whole, strict=True)
    ]


def begin(leading: Sequence[int], row: Sequence[int]) -> list[int]:
    """Put the leading ids before a text's ids, unless the text itself spells them."""
    return list(row) if row[:1] == leading[:1] else [*leading, *row]


def leading_ids(tok: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before every text: BOS, or nothing (GPT-2)."""
    whole = list(tok("a")["input_ids"])
    bare = list(tok("a", add_special_tokens=False)["input_ids"])
    starts = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[: next(starts, 0)]


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids -> (input_ids, attention_mask), int64 [n_rows, longest], padded with id 0."""
    longest = max(map(len, rows))
    input_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for i, ids in enumerate(rows):
        input_ids[i, : len(ids)] = torch.tensor(ids)
        attention_mask[i, : len(ids)] = 1
    return input_ids, attention_mask


def decode(tok: PreTrainedTokenizerBase, ids: Sequence[int], *, special: bool = False) -> str:
    """Token ids -> text, exactly; special tokens are left out unless ``special``."""
    text = tok.decode(
        list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
    )
    return str(text)


def pieces(
    tok: PreTrainedTokenizerBase, before: Sequence[int], ids: Sequence[int]
) -> tuple[str, ...]:
    """The text that each token adds behind the tokens before it.

    Decoded alone, a token loses its leading space with many tokenizers. A token that completes no
    character, such as a byte of a Chinese one, is shown as the replacement character; a special
    token by its name.
    """
    said = [whole_text(tok, [*before, *ids[:n]]) for n in range(len(ids) + 1)]
    special = set(tok.all_special_ids)
    return tuple(
        str(tok.convert_ids_to_tokens(i)) if i in special else b[len(a) :] or INCOMPLETE
        for i, (a, b) in zip(ids, pairwise(said), strict=True)
    )


def whole_text(tok: PreTrainedTokenizerBase, ids: Sequence[int], *, special: bool = False) -> str:
    """Token ids -> text up to the last whole character.

    With some decoders, the first bytes of an incomplete character turn all bytes before them into
    replacement characters; there are at most three such bytes.
    """
    texts = (decode(tok, ids[: len(ids) - n], special=special) for n in range(4))
    return next((text for text in texts if not text.endswith(INCOMPLETE)), "")


def skeleton(text: str) -> str:
    """Text without what tokenizers change on the way: spaces, case, composed forms."""
    return "".join(unicodedata.normalize("NFKD", text).casefold().split())
