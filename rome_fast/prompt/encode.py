"""One request -> padded rows of token ids with their lookup positions, and the target's ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from rome_fast.prompt.chat import Frame
from rome_fast.prompt.ids import pad_right, pieces, skeleton
from rome_fast.prompt.lookup import Passage, locate_subject
from rome_fast.prompt.request import SLOT, EditRequest
from rome_fast.prompt.target import Asked, Continuation, continuations

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# The prompt of the KL term, which preserves the subject's essence (paper, sec. 3.1).
KL_TEMPLATE = "{} is a"


class KeptFact(NamedTuple):
    """Another fact of the subject, whose answer shall stay; or this one, asked in another form.

    Attributes:
        row: of its prompt and all target tokens but the last.
        start: the position there that predicts the first target token.
    """

    row: int
    start: int
    target_ids: tuple[int, ...]


@dataclass(frozen=True)
class TokenizedEdit:
    """One request as a batch of rows, padded on the right whatever the tokenizer's padding side.

    Rows 0 to ``n_contexts - 1`` are the contexts, each followed by all tokens of target and end but
    the last (teacher forcing); row ``n_contexts`` is the KL prompt; one more row holds the bare
    prompt if no context is just ``{}``; the last ones hold the facts that are kept.

    Attributes:
        input_ids, attention_mask: int64 [n_rows, t].
        lookup_idx: int64 [n_rows], the position where key and value are read and written.
        target_ids: int64 [n_target].
        target_start: int64 [n_contexts], the position that predicts the first target token.
        prompt_row: the row of the bare prompt.
        target_tokens: the text of each target token behind the prompt, its space included.
        findings: remarks for the user about the request and its tokens.
        end_ids, end: what shall follow the target, int64 [n_end], and its text.
        raw: prompt and target as plain texts, for a request in a chat; else None.
        kept: earlier facts of this subject, and the request itself in another form.
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
    findings: tuple[str, ...] = ()
    raw: Continuation | None = None
    kept: tuple[KeptFact, ...] = ()
    end: str = ""
    end_ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @property
    def said_ids(self) -> Tensor:
        """Target and end, int64 [n_target + n_end]."""
        return torch.cat([self.target_ids, self.end_ids])

    @property
    def prompt_ids(self) -> Tensor:
        """Token ids of the bare prompt without any target, int64 [n_prompt]."""
        length = int(self.attention_mask[self.prompt_row].sum())
        if self.prompt_row < self.n_contexts:
            length -= len(self.said_ids) - 1
        return self.input_ids[self.prompt_row, :length]


def encode(
    tok: PreTrainedTokenizerBase,
    request: EditRequest,
    context_templates: Sequence[str],
    fact_token: str = "subject_last",
    kept: Sequence[EditRequest] = (),
    end_ids: Sequence[int] = (),
) -> TokenizedEdit:
    """Turn a request into padded rows of token ids with their lookup positions.

    Target ids are appended as ids, so re-tokenisation can never shift the labels. In a chat the
    contexts precede the prompt inside the user's message; the KL prompt stays a plain text.
    ``kept``: earlier facts of the subject, or this one in another form, whose answers the search
    for v* shall give too; ``end_ids``: what shall follow the target.

    Raises:
        InvalidRequestError: the target tokenises to nothing, or the chat cannot be rendered.
        TokenizerMismatchError: the subject's token cannot be found.
    """
    frame, n_contexts = Frame.of(tok, request.conversation), len(context_templates)
    passages = [passage_of(request, frame, template) for template in context_templates]
    passages.append(Passage(KL_TEMPLATE.replace(SLOT, request.subject), 0, len(request.subject)))
    prompt_row = n_contexts + 1
    if SLOT in context_templates:
        prompt_row = context_templates.index(SLOT)
    else:
        passages.append(passage_of(request, frame))
    n_own = len(passages)
    passages += [passage_of(other, Frame.of(tok, other.conversation)) for other in kept]
    located = [locate_subject(tok, passage, fact_token) for passage in passages]
    rows, lookup = [ids for ids, _ in located], [index for _, index in located]
    forms = [None] if request.chat is None else [request.conversation, None]
    asked, *raw = continuations(
        tok, [Asked(request.text, request.target, form, request.space) for form in forms]
    )
    target_start = [len(ids) - 1 for ids in rows[:n_contexts]]
    at = lookup[prompt_row]
    [subject_token] = pieces(tok, rows[prompt_row][:at], rows[prompt_row][at : at + 1])
    target_tokens = pieces(tok, asked.prompt_ids, asked.target_ids)
    said = [*asked.target_ids, *end_ids]
    rows[:n_contexts] = [ids + said[:-1] for ids in rows[:n_contexts]]
    facts = []
    for row, answer in enumerate(_answers(tok, kept), n_own):
        facts.append(KeptFact(row, len(rows[row]) - 1, answer))
        rows[row] = [*rows[row], *answer[:-1]]
    input_ids, attention_mask = pad_right(rows)
    return TokenizedEdit(
        input_ids=input_ids,
        attention_mask=attention_mask,
        lookup_idx=torch.tensor(lookup),
        target_ids=torch.tensor(asked.target_ids),
        target_start=torch.tensor(target_start),
        n_contexts=n_contexts,
        prompt_row=prompt_row,
        subject_token=subject_token,
        target_tokens=target_tokens,
        findings=(
            *request.findings(),
            *_idle_kwargs(request, frame),
            *_findings(asked, target_tokens),
        ),
        raw=raw[0] if raw else None,
        kept=tuple(facts),
        end="".join(pieces(tok, [*asked.prompt_ids, *asked.target_ids], end_ids)),
        end_ids=torch.tensor(list(end_ids), dtype=torch.int64),
    )


def _answers(
    tok: PreTrainedTokenizerBase, requests: Sequence[EditRequest]
) -> list[tuple[int, ...]]:
    """The targets' ids behind their prompts."""
    asked = [Asked(r.text, r.target, r.conversation, r.space) for r in requests]
    return [tuple(c.target_ids) for c in continuations(tok, asked)] if asked else []


def passage_of(request: EditRequest, frame: Frame, template: str = SLOT) -> Passage:
    """A request's prompt in a context, as the model reads it, and where its subject is."""
    # A trailing space is dropped, since the target brings its own; a newline is kept.
    prompt = request.prompt.rstrip(" ")
    at, slot = template.index(SLOT), prompt.index(SLOT)
    left = template[:at] + prompt[:slot]
    right = prompt[slot + len(SLOT) :] + template[at + len(SLOT) :]
    start = len(frame.before) + len(left)
    text = frame.wrap(left + request.subject + right)
    return Passage(text, start, start + len(request.subject), frame.chat is not None)


def _idle_kwargs(request: EditRequest, frame: Frame) -> tuple[str, ...]:
    """A remark for the user where what the chat template is given changes nothing."""
    if frame.chat is None or not frame.chat.template_kwargs:
        return ()
    without = Frame.of(frame.tok, replace(frame.chat, template_kwargs=()))
    if (without.before, without.after) != (frame.before, frame.after):
        return ()
    given = dict(frame.chat.template_kwargs)
    return (f"chat_template_kwargs {given} change nothing in the chat template",)


def _findings(asked: Continuation, tokens: Sequence[str]) -> tuple[str, ...]:
    """A remark for the user where the tokens do not decode to the target."""
    said = "".join(tokens)
    if asked.is_exact and skeleton(said.replace("\ufffd", "")) == skeleton(asked.text):
        return ()
    return (f"target {asked.text!r} is {list(tokens)} in the tokens of this tokenizer",)
