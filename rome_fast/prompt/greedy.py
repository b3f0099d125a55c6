"""Greedy decoding of many prompts in one batch, out of which rows that have ended are taken."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.errors import NonFiniteError
from rome_fast.model.intercept import reading_only
from rome_fast.model.nonfinite import where_not_finite
from rome_fast.model.spec import input_device, max_positions
from rome_fast.prompt.ids import decode, pad_right
from rome_fast.prompt.logits import NOT_FINITE, logits_at

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def greedy_continuations(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    narrow: Callable[[Tensor], None] | None = None,
) -> list[str]:
    """The ``n_tokens`` most likely next tokens of each prompt (token ids), as text.

    A text ends before an end token, and at the model's last position. The model's own generation
    settings (sampling, penalties) are ignored.

    Raises:
        NonFiniteError: the logits are NaN or infinite.
    """
    said = greedy_tokens(model, tok, prompts, n_tokens, narrow=narrow)
    return [decode(tok, tokens) for tokens in said]


def greedy_tokens(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    is_over: Callable[[Sequence[int]], bool] | None = None,
    narrow: Callable[[Tensor], None] | None = None,
) -> list[list[int]]:
    """The token ids of ``greedy_continuations``.

    Args:
        is_over: whether what has been said is enough, by its ids: a row may go on behind it.
        narrow: is told which rows go on, int64 indices into those of the forward before, each
            time that others have ended and are taken out; None: nothing depends on the rows.
    """
    ends = end_tokens(model, tok)
    room = [room_of(model, prompt, n_tokens) for prompt in prompts]

    def is_done(said: Sequence[int], room: int) -> bool:
        return len(said) >= room or said[-1] in ends or (is_over is not None and is_over(said))

    found = []
    for n, tokens in zip(room, _continue(model, prompts, room, is_done, narrow), strict=True):
        end = next((i for i, token in enumerate(tokens[:n]) if token in ends), n)
        found.append(tokens[:end])
    return found


def room_of(model: PreTrainedModel, prompt: Sequence[int], n_tokens: int) -> int:
    """How many tokens can follow a prompt, ``n_tokens`` at most: the last one needs no position."""
    limit = max_positions(model)
    return n_tokens if limit is None else min(n_tokens, limit + 1 - len(prompt))


def end_tokens(model: PreTrainedModel, tok: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's EOS, and the end tokens of the model's generation settings (end of turn)."""
    named = model.generation_config.eos_token_id
    ids = [tok.eos_token_id, *(named if isinstance(named, list) else [named])]
    return [i for i in ids if i is not None]


@torch.no_grad()
def _continue(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    room: Sequence[int],
    is_done: Callable[[Sequence[int], int], bool],
    narrow: Callable[[Tensor], None] | None,
) -> list[list[int]]:
    """Greedy tokens after each prompt with room, at least until they are done."""
    said: list[list[int]] = [[] for _ in prompts]
    going = [i for i, n in enumerate(room) if n > 0]
    if not going:
        return said
    if narrow is not None and len(going) < len(prompts):
        narrow(torch.tensor(going))
    forward = _Forward(model, [prompts[i] for i in going])
    done = [False] * len(going)
    while not all(done):
        for i, token in zip(going, forward.next(), strict=True):
            said[i].append(token)
        done = [d or is_done(said[i], room[i]) for d, i in zip(done, going, strict=True)]
        left = torch.tensor([n for n, d in enumerate(done) if not d], dtype=torch.int64)
        # Taking rows out copies the cache of the others: worth it when there are many.
        if 0 < 2 * len(left) <= len(going) and forward.keep(left):
            going, done = [going[n] for n in left.tolist()], [False] * len(left)
            if narrow is not None:
                narrow(left)
    return said


class _Forward:
    """The likeliest next token of each of some rows, again and again."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self._model, self._limit = model, max_positions(model)
        self._cache: Any = None
        # Padded on the left, so that the last tokens of all rows lie in one column.
        padded = pad_right([prompt[::-1] for prompt in prompts])
        self._ids, self._mask = (x.flip(1).to(input_device(model)) for x in padded)
        parameters = inspect.signature(model.forward).parameters
        passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._takes_positions = "position_ids" in parameters
        self._takes_cache = passes_on or "past_key_values" in parameters

    def next(self) -> list[int]:
        """One token more of every row."""
        ids, mask = self._ids, self._mask
        new = ids if self._cache is None else ids[:, -1:]
        inputs: dict[str, Any] = {"input_ids": new, "attention_mask": mask}
        if self._takes_cache:
            inputs["past_key_values"] = self._cache
        if self._takes_positions:
            # Finished rows run on with the others, but not past the last position.
            last = None if self._limit is None else self._limit - 1
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(0, last)[:, -new.shape[1] :]
        rows = torch.arange(len(ids))
        at = torch.full_like(rows, new.shape[1] - 1)
        with reading_only(self._model.get_output_embeddings(), rows, at):
            out = self._model(**inputs, use_cache=self._takes_cache)
        if self._takes_cache:
            self._cache = out.past_key_values
        logits = out.logits[0]
        if not torch.isfinite(logits.amax(1)).all():
            texts = [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
            again = partial(logits_at, self._model, texts, [(0, 0)])
            raise NonFiniteError(f"{NOT_FINITE}: {where_not_finite(self._model, again)}")
        best = logits.argmax(1).to(ids.device)
        self._ids = torch.cat([ids, best[:, None]], 1)
        self._mask = torch.cat([mask, torch.ones_like(best)[:, None]], 1)
        return [int(token) for token in best.tolist()]

    def keep(self, rows: Tensor) -> bool:
        """Go on with these rows alone; whether the model's cache can."""
        from transformers import DynamicCache

        rows = rows.to(self._ids.device)
        if self._takes_cache:
            if not isinstance(self._cache, DynamicCache):
                return False
            self._cache.batch_select_indices(rows)
        self._ids, self._mask = self._ids[rows], self._mask[rows]
        return True
