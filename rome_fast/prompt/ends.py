"""What follows a target: the tokens of its end, as they were asked for, or as the model writes.

An edit is searched until the target is likely; what the model writes behind it is left to chance,
and often is the target again. Where the sentence can end there, its end is searched too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import InvalidRequestError
from rome_fast.prompt.chat import turn_end
from rome_fast.prompt.greedy import end_tokens
from rome_fast.prompt.ids import pieces
from rome_fast.prompt.logits import logits_at
from rome_fast.prompt.target import Asked, continuations

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.prompt.encode import TokenizedEdit
    from rome_fast.prompt.request import EditRequest

# What a token begins with that ends a sentence, or a part of one.
_SENTENCE, _PART = ".!?\u3002\uff01\uff1f\u2026\n", ",;:\uff0c\uff1b\uff1a\u3001"
# Of the likeliest tokens so many are looked at, behind the prompt alone and in so many contexts.
_N_LIKELY, _N_CONTEXTS = 20, 4
# So likely are the ends of a sentence together where one can end, and of a part where it can pause:
# benchmarks.real_model.can_end, where texts end and where they go on.
_CAN_END, _CAN_PAUSE = 0.04, 0.1


def ends_of(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    edits: Sequence[TokenizedEdit],
    default: str,
) -> list[tuple[int, ...]]:
    """The ids of each request's end; none where it has none.

    Args:
        edits: the same requests, encoded without an end.
        default: where a request does not say.

    Raises:
        InvalidRequestError: an end that this tokenizer cannot write.
        NonFiniteError: the logits are NaN or infinite.
    """
    modes = [default if request.end is None else request.end for request in requests]
    found = [
        () if mode in ("none", "auto") else _fixed(tok, request, edit, mode)
        for mode, request, edit in zip(modes, requests, edits, strict=True)
    ]
    own = [i for i, mode in enumerate(modes) if mode == "auto"]
    if own:
        ends = set(end_tokens(model, tok))
        for i, end in zip(own, _own(model, tok, [edits[i] for i in own], ends), strict=True):
            found[i] = end
    return found


def _fixed(
    tok: PreTrainedTokenizerBase, request: EditRequest, edit: TokenizedEdit, mode: str
) -> tuple[int, ...]:
    """The end of the text, or of the turn; or a text behind the target."""
    if mode == "eos":
        if request.conversation is not None:
            text = turn_end(tok, request.conversation)
            ids = tok(text, add_special_tokens=False)["input_ids"] if text else []
            if ids:
                return (int(ids[0]),)
        if tok.eos_token_id is None:
            raise InvalidRequestError("request end is 'eos', and the tokenizer has no such token")
        return (int(tok.eos_token_id),)
    said = request.target + mode
    [whole] = continuations(tok, [Asked(request.text, said, request.conversation, request.space)])
    target = edit.target_ids.tolist()
    rest = whole.target_ids[len(target) :]
    if whole.target_ids[: len(target)] != target or not rest:
        raise InvalidRequestError(
            f"request end {mode!r} cannot be written behind {request.target!r} with this "
            f"tokenizer: put it into the target, {said!r}"
        )
    return tuple(rest)


@torch.no_grad()
def _own(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    edits: Sequence[TokenizedEdit],
    ends: set[int],
) -> list[tuple[int, ...]]:
    """What the model itself writes behind each target, where it would end there."""
    rows, counts = [], []
    for edit in edits:
        starts = edit.target_start.tolist()[:_N_CONTEXTS]
        mine = [edit.input_ids[i, : start + 1].tolist() for i, start in enumerate(starts)]
        mine = [[*row, *edit.target_ids.tolist()] for row in (edit.prompt_ids.tolist(), *mine)]
        rows += mine
        counts.append(len(mine))
    logits = logits_at(model, rows, [(i, len(row) - 1) for i, row in enumerate(rows)])
    means = [part.double().softmax(1).mean(0) for part in logits.split(counts)]
    return [_likeliest(tok, edit, mean, ends) for edit, mean in zip(edits, means, strict=True)]


def _likeliest(
    tok: PreTrainedTokenizerBase, edit: TokenizedEdit, probs: torch.Tensor, ends: set[int]
) -> tuple[int, ...]:
    """The likeliest end of a sentence where it can end; else of a part where it can pause."""
    before = [*edit.prompt_ids.tolist(), *edit.target_ids.tolist()]
    is_ended = "".join(edit.target_tokens).rstrip()[-1:] in _SENTENCE
    found = masses(tok, before, probs, ends, is_ended)
    for likely, least in zip(found, (_CAN_END, _CAN_PAUSE), strict=True):
        if sum(p for p, _ in likely) >= least:
            return (max(likely)[1],)
    return ()


def masses(
    tok: PreTrainedTokenizerBase,
    before: Sequence[int],
    probs: torch.Tensor,
    ends: set[int],
    is_ended: bool = False,
) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
    """(probability, token) of what ends a sentence, and of what ends a part, among the likeliest.

    Args:
        before: ids of the text so far.
        probs: [vocabulary], of the token after it.
        ends: the tokens that end a text.
        is_ended: whether the text so far ends a sentence already: then only a line can end.
    """
    sentence, part = ("\n", "") if is_ended else (_SENTENCE, _PART)
    top = probs.topk(min(_N_LIKELY, len(probs)))
    whole, paused = [], []
    for p, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        mark = pieces(tok, before, [token])[0].lstrip(" ")[:1]
        if token in ends or (mark and mark in sentence):
            whole.append((p, token))
        elif mark and mark in part:
            paused.append((p, token))
    return whole, paused
