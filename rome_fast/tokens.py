"""Request -> token ids, and the index of the token where the fact is looked up.

A subject is found by its characters in the whole text, never by tokenising pieces: tokenisers
merge across spaces, add BOS, and split Chinese characters into bytes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import InvalidRequestError, TokenizerMismatchError
from rome_fast.types import SLOT, EditRequest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# The prompt on which the essence of the subject is held still (algorithm of the paper, sec. 3.1).
KL_TEMPLATE = "{} is a"

# Scripts written without spaces between words: no space is put before such a target.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "IDEOGRAPHIC")


@dataclass(frozen=True)
class TokenizedEdit:
    """One request as a batch of rows, padded on the right whatever the tokenizer's habit.

    Rows 0 to ``n_contexts - 1`` are the contexts with the target's tokens but the last appended;
    row ``n_contexts`` is the KL prompt; one more row holds the bare prompt where no context is
    just ``{}``.

    Attributes:
        input_ids, attention_mask: int64 [n_rows, t].
        lookup_idx: int64 [n_rows], the position where key and value are read and written.
        target_ids: int64 [n_target].
        target_start: int64 [n_contexts], the position that predicts the first target token.
        prompt_row: the row of the bare prompt.
    """

    input_ids: Tensor
    attention_mask: Tensor
    lookup_idx: Tensor
    target_ids: Tensor
    target_start: Tensor
    n_contexts: int
    prompt_row: int
    subject_token: str
    target_tokens: tuple[str, ...]

    @property
    def prompt_ids(self) -> Tensor:
        """Token ids of the bare prompt without any target, int64 [n_prompt]."""
        length = int(self.attention_mask[self.prompt_row].sum())
        if self.prompt_row < self.n_contexts:
            length -= len(self.target_ids) - 1
        return self.input_ids[self.prompt_row, :length]


def encode(
    tok: PreTrainedTokenizerBase,
    request: EditRequest,
    context_templates: Sequence[str],
    fact_token: str = "subject_last",
) -> TokenizedEdit:
    """Turn a request into padded rows of token ids with their lookup positions.

    Target ids are appended as ids, so re-tokenisation can never shift the labels.

    Raises:
        InvalidRequestError: the target tokenises to nothing.
        TokenizerMismatchError: the subject's token cannot be found by offsets nor by decoding.
    """
    # A space at the end of the prompt is the one that the target brings; a newline is not.
    prompt = request.prompt.rstrip(" ")
    target_ids = find_target_ids(tok, prompt.replace(SLOT, request.subject, 1), request.target)
    templates = [template.replace(SLOT, prompt, 1) for template in context_templates]
    n_contexts = len(templates)
    templates.append(KL_TEMPLATE)
    if SLOT not in context_templates:
        templates.append(prompt)
    rows, lookup = [], []
    for template in templates:
        ids, index = locate_subject(tok, template, request.subject, fact_token)
        rows.append(ids)
        lookup.append(index)
    target_start = [len(ids) - 1 for ids in rows[:n_contexts]]
    prompt_row = context_templates.index(SLOT) if SLOT in context_templates else n_contexts + 1
    subject_token = decode(tok, [rows[prompt_row][lookup[prompt_row]]])
    rows[:n_contexts] = [ids + target_ids[:-1] for ids in rows[:n_contexts]]
    input_ids, attention_mask = pad_right(rows)
    return TokenizedEdit(
        input_ids=input_ids,
        attention_mask=attention_mask,
        lookup_idx=torch.tensor(lookup),
        target_ids=torch.tensor(target_ids),
        target_start=torch.tensor(target_start),
        n_contexts=n_contexts,
        prompt_row=prompt_row,
        subject_token=subject_token,
        target_tokens=tuple(decode(tok, [i]) for i in target_ids),
    )


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids -> (input_ids, attention_mask), int64 [n_rows, longest], padded with id 0."""
    longest = max(map(len, rows))
    input_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for i, ids in enumerate(rows):
        input_ids[i, : len(ids)] = torch.tensor(ids)
        attention_mask[i, : len(ids)] = 1
    return input_ids, attention_mask


def decode(tok: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Token ids -> text, exactly, without special tokens."""
    text = tok.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def locate_subject(
    tok: PreTrainedTokenizerBase, template: str, subject: str, fact_token: str
) -> tuple[list[int], int]:
    """Fill the template's slot and find the lookup token.

    Returns:
        The ids of the whole text (with the special tokens the tokenizer adds) and the index of
        the token that ``fact_token`` names.
    """
    start = template.index(SLOT)
    end = start + len(subject)
    text = template.replace(SLOT, subject, 1)
    ids, offsets = _encode_with_offsets(tok, text)
    if fact_token == "last":
        return ids, len(ids) - 1
    if fact_token == "subject_first":
        return ids, _token_at(tok, ids, offsets, text, start + 1)
    last = _token_at(tok, ids, offsets, text, end)
    if fact_token == "subject_first_after_last":
        return ids, min(last + 1, len(ids) - 1)
    return ids, last


def text_ids(tok: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text that is to be continued: with BOS if the tokenizer adds one, never with EOS."""
    return _without_eos(tok, text, tok(text)["input_ids"])


def all_text_ids(tok: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """``text_ids`` of each text, in one call of the tokenizer; long texts are no cause to warn."""
    rows = tok(list(texts), verbose=False)["input_ids"] if texts else []
    return [_without_eos(tok, text, row) for text, row in zip(texts, rows, strict=True)]


def _without_eos(tok: PreTrainedTokenizerBase, text: str, row: Sequence[int]) -> list[int]:
    ids = list(row)
    if tok.eos_token is not None and not text.endswith(tok.eos_token):
        while ids and ids[-1] == tok.eos_token_id:
            ids.pop()
    return ids


def _encode_with_offsets(
    tok: PreTrainedTokenizerBase, text: str
) -> tuple[list[int], list[tuple[int, int]]]:
    ids = text_ids(tok, text)
    if not tok.is_fast:
        return ids, []
    return ids, list(tok(text, return_offsets_mapping=True)["offset_mapping"])[: len(ids)]


def _token_at(
    tok: PreTrainedTokenizerBase,
    ids: list[int],
    offsets: list[tuple[int, int]],
    text: str,
    end: int,
) -> int:
    """Index of the token that completes ``text[:end]``.

    Offsets are a hint only: some tokenisers report (0, 0) or the offsets of a normalised text,
    so the answer must also decode to the text up to ``end``; if not, every prefix is decoded.
    """
    hint = [i for i, (a, b) in enumerate(offsets) if a < end <= b]
    wanted = _skeleton(text[:end])
    candidates = hint[-1:] + list(range(len(ids)))
    for i in candidates:
        # Special tokens stay in: a chat prompt spells them out, and BOS does no harm to `in`.
        before, upto = (_skeleton(str(tok.decode(ids[:n]))) for n in (i, i + 1))
        if wanted in upto and wanted not in before:
            return i
    raise TokenizerMismatchError(
        f"the tokens of {text!r} do not decode to it, so the subject's token cannot be found: "
        f"{type(tok).__name__} gave {tok.convert_ids_to_tokens(ids)}"
    )


def _skeleton(text: str) -> str:
    """Text without what tokenisers change on the way: spaces, case, composed forms."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def find_target_ids(tok: PreTrainedTokenizerBase, prompt: str, target: str) -> list[int]:
    """Ids that follow the prompt's when prompt and target are tokenised together.

    Tokenising the target alone would give it a BOS, or a second word-start mark, with
    SentencePiece tokenisers. Where the two merge across the boundary it is tokenised alone.
    A leading space is added unless the target has one or its script is written without.
    """
    return all_target_ids(tok, [prompt], [target])[0][1]


def all_target_ids(
    tok: PreTrainedTokenizerBase, prompts: Sequence[str], targets: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    """(ids of the prompt, ``find_target_ids``) of each pair, in two calls of the tokenizer."""
    spaced = [
        target if _no_space_between(prompt, target) else " " + target
        for prompt, target in zip(prompts, targets, strict=True)
    ]
    prompt_rows = all_text_ids(tok, prompts)
    joint_rows = all_text_ids(tok, [p + t for p, t in zip(prompts, spaced, strict=True)])
    pairs = []
    for prompt_ids, joint_ids, text, target in zip(
        prompt_rows, joint_rows, spaced, targets, strict=True
    ):
        ids = joint_ids[len(prompt_ids) :]
        if joint_ids[: len(prompt_ids)] != prompt_ids or not ids:
            ids = list(tok(text, add_special_tokens=False)["input_ids"])
        if not ids or not decode(tok, ids).strip():
            raise InvalidRequestError(f"target {target!r} tokenises to nothing: {ids}")
        pairs.append((prompt_ids, ids))
    return pairs


def _no_space_between(prompt: str, target: str) -> bool:
    if target[0].isspace() or not prompt or prompt[-1].isspace():
        return True
    return any(unicodedata.name(char, "").startswith(_UNSPACED) for char in (prompt[-1], target[0]))
