"""How a subject is told from everything else: its h in the edit's contexts, and in other company.

Most of what stands at a subject's last token is that token: ' Association' answers nearly like
'Iraq Football Association'. So its last tokens are read behind other texts as well. And what stands
at the first token of a text is nearly the same whatever that is: a subject of one token is compared
with other first tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from rome_fast.beside.directions import direction_apart
from rome_fast.beside.entry import entry_of
from rome_fast.model.activations import read_activations
from rome_fast.model.spec import ModelSpec, embedding_rows
from rome_fast.moment.collect.corpus import Corpus
from rome_fast.moment.collect.ordinary import ORDINARY_TEXT
from rome_fast.prompt.encode import TokenizedEdit, encode
from rome_fast.prompt.ids import decode, leading_ids, pad_right, text_ids
from rome_fast.types import EditRequest, Signature

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from rome_fast.beside.entry import Entry
    from rome_fast.model.units import HiddenUnits

# Tokens of the texts before a subject's last tokens, and the most of the latter.
_LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12)
_LAST = 2


@dataclass(frozen=True, eq=False)
class ReadSubject:
    """What was read of one way of writing a subject.

    Attributes:
        prompt: which of its own h is that of the bare prompt.
        company: h of its last tokens in other company, or of other first tokens, [m, d_model]; not
            kept in logs.
    """

    signature: Signature
    prompt: int
    company: Tensor


class SubjectReader:
    """Reads what enters the MLP of one layer at subjects' tokens."""

    def __init__(
        self,
        spec: ModelSpec,
        tok: PreTrainedTokenizerBase,
        units: HiddenUnits,
        entry: Entry,
        context_templates: Sequence[str],
        fact_token: str,
    ) -> None:
        self._tok, self._units, self._entry = tok, units, entry
        self._templates, self._fact_token = context_templates, fact_token
        self._company = _openings(spec, tok)
        n_leading = len(self._company[0])
        self._first_tokens = [opening[: n_leading + 1] for opening in self._company[1:]]

    def read(
        self, spec: ModelSpec, request: EditRequest, edit: TokenizedEdit
    ) -> dict[str, ReadSubject]:
        """By the ways of writing the request's subject: its own, and its aliases."""
        found = {request.subject: self._read_one(spec, edit, request.subject)}
        for name in request.aliases:
            again = replace(request, subject=name, aliases=())
            rows = encode(self._tok, again, self._templates, self._fact_token)
            found[name] = self._read_one(spec, rows, name)
        return found

    def _read_one(self, spec: ModelSpec, edit: TokenizedEdit, subject: str) -> ReadSubject:
        rows = sorted({*range(edit.n_contexts), edit.prompt_row})
        own = self._h(spec, edit.input_ids[rows], edit.attention_mask[rows], edit.lookup_idx[rows])
        others = [
            [*opening, *last]
            for last in self._last_tokens(edit, subject)
            for opening in self._company
        ]
        ids, mask = pad_right(others or self._first_tokens)
        company = self._h(spec, ids, mask, mask.sum(1) - 1)
        apart = direction_apart(self._entry, own, company)
        signature = Signature(own.float(), apart.float())
        return ReadSubject(signature, rows.index(edit.prompt_row), company)

    def _last_tokens(self, edit: TokenizedEdit, subject: str) -> list[list[int]]:
        """The last token of the subject, its last two, and so on, but never all."""
        at = int(edit.lookup_idx[edit.prompt_row])
        ids = edit.input_ids[edit.prompt_row, : at + 1].tolist()
        length = 1
        while length <= at and len(decode(self._tok, ids[-length:]).strip()) < len(subject):
            length += 1
        return [ids[-n:] for n in range(1, min(length - 1, _LAST) + 1)]

    def of_text(self, spec: ModelSpec, text: str) -> Tensor:
        """What enters the MLP at every token of a text, float64 [t, d_model] on the CPU."""
        ids, mask = pad_right([text_ids(self._tok, text)])
        return self._all_h(spec, ids, mask)[0]

    def _h(self, spec: ModelSpec, input_ids: Tensor, mask: Tensor, at: Tensor) -> Tensor:
        """The same at one position of each row, [n, d_model]."""
        return self._all_h(spec, input_ids, mask)[torch.arange(len(at)), at.cpu()]

    def _all_h(self, spec: ModelSpec, input_ids: Tensor, mask: Tensor) -> Tensor:
        """[n, t, d_model]."""
        entry = entry_of(self._units)
        return read_activations(spec.model, entry, input_ids, mask)[0].double().cpu()


def _openings(spec: ModelSpec, tok: PreTrainedTokenizerBase) -> list[list[int]]:
    """Beginnings of ordinary texts, as ids; the first is what the tokenizer puts before a text."""
    leading = leading_ids(tok)
    texts = iter(Corpus(ORDINARY_TEXT, tok, embedding_rows(spec.model)))
    found = []
    for length in _LENGTHS:
        text = next(texts) if length else leading
        found.append(text[: len(leading) + length])
    return found
