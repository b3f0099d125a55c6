"""What the model says: probability, rank and greedy continuation, read from its present weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rome_fast.errors import NonFiniteError
from rome_fast.model.intercept import reading_only
from rome_fast.model.nonfinite import located, where_not_finite
from rome_fast.model.spec import input_device, max_positions
from rome_fast.prompt.ids import decode, pad_right, pieces
from rome_fast.prompt.subject import cuts_a_word

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Rows of logits converted to float64 at a time.
SLICE = 64

_NOT_FINITE = "reading what the model says, its logits are NaN or infinite"


@dataclass(frozen=True)
class Reading:
    """What the model says after a prompt.

    Attributes:
        prob: probability of the target, the product over its tokens.
        rank: the worst rank of a target token given those before it; 1 = greedy says the target.
        argmax: the greedy continuation, as many tokens as the target has.
        then: where that is the target, the likeliest token after it; "" where it is not, or where
            the target ends at the model's last position.
    """

    prob: float
    rank: int
    argmax: str
    then: str = ""

    @property
    def runs_on(self) -> bool:
        """Whether the target is said as the beginning of a longer word."""
        said = self.argmax
        return bool(said and self.then) and cuts_a_word(said + self.then, (0, len(said)))


class Change(NamedTuple):
    """What the model says after one prompt, before and after an edit."""

    before: Reading
    after: Reading

    def __str__(self) -> str:
        return (
            f"{self.before.prob:.4f} -> {self.after.prob:.4f}   (rank {self.before.rank} -> "
            f"{self.after.rank}), {self.before.argmax!r} -> {self.after.argmax!r}"
        )


@torch.no_grad()
def read_targets(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
) -> list[Reading]:
    """Read one target after each prompt, both as token ids, and the token after it, in one forward.

    Raises:
        NonFiniteError: the logits are NaN or infinite.
    """
    pairs = list(zip(prompts, targets, strict=True))
    longest, limit = max(len(p) + len(t) for p, t in pairs), max_positions(model)
    n_more = int(limit is None or longest <= limit)
    rows = [
        [*prompt, *target][: len(prompt) + len(target) - 1 + n_more] for prompt, target in pairs
    ]
    places = [(i, len(p) - 1 + k) for i, (p, t) in enumerate(pairs) for k in range(len(t) + n_more)]
    logits = logits_at(model, rows, places).split([len(target) + n_more for target in targets])
    readings = []
    for (prompt, target), x in zip(pairs, logits, strict=True):
        reading = read_logits(model, tok, prompt, target, x[: len(target)])
        if n_more and reading.rank == 1:
            [then] = pieces(tok, [*prompt, *target], [int(x[-1].argmax())])
            reading = replace(reading, then=then)
        readings.append(reading)
    return readings


@torch.no_grad()
def logits_at(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], places: Sequence[tuple[int, int]]
) -> Tensor:
    """Logits [len(places), vocabulary] after the tokens (row, position) of rows of token ids.

    One forward of the model as it is; its head runs at these places only.
    """
    return logits_with_grad(model, rows, places)


def logits_with_grad(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], places: Sequence[tuple[int, int]]
) -> Tensor:
    """As ``logits_at``, of which gradients can be taken."""
    input_ids, attention_mask = pad_right(rows)
    row, position = torch.tensor(places).unbind(1)
    device = input_device(model)
    with reading_only(model.get_output_embeddings(), row, position):
        logits: Tensor = model(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            use_cache=False,
        ).logits[0]
    return logits


def log_probs_of(logits: Tensor, places: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities [n], float64, of token ``targets[i]`` under ``logits[places[i]]``.

    Args:
        logits: [m, vocabulary].
        places, targets: int64 [n].

    Raises:
        NonFiniteError: a logit is NaN or infinite.
    """
    # In slices: all at once in float64 they would take twice the memory of the logits.
    totals = torch.cat([part.double().logsumexp(1) for part in logits.split(SLICE)])
    log_probs = logits[places, targets].double() - totals[places]
    if not torch.isfinite(log_probs).all():
        raise NonFiniteError(_NOT_FINITE)
    return log_probs


def read_logits(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    target: Sequence[int],
    logits: Tensor,
) -> Reading:
    """The reading of one target from logits [n_target, vocabulary] of the model as it is now.

    The model runs again only where the target has several tokens and is not its answer.
    """
    logits = logits.double().cpu()
    target_ids = torch.tensor(target)
    with located(model, lambda: logits_at(model, [[*prompt, *target[:-1]]], [(0, 0)])):
        log_probs = log_probs_of(logits, torch.arange(len(target)), target_ids)
    prob = float(log_probs.sum().exp())
    chosen = logits.gather(1, target_ids[:, None])
    # Of equal logits argmax takes the first, so that one ranks higher.
    earlier = torch.arange(logits.shape[1]) < target_ids[:, None]
    rank = int((1 + ((logits > chosen) | (logits == chosen) & earlier).sum(1)).max())
    if rank == 1:
        return Reading(prob, rank, decode(tok, target))
    if len(target) == 1:
        return Reading(prob, rank, decode(tok, [int(logits[0].argmax())]))
    return Reading(prob, rank, greedy_continuations(model, tok, [prompt], len(target))[0])


def findings(target: str, before: Reading, after: Reading) -> list[str]:
    """Remarks for the user about the readings before and after an edit."""
    found = []
    if before.rank == 1:
        found.append(f"the model already said {target!r} before the edit")
    if after.rank > 1:
        found.append(
            f"target {target!r} is not the model's answer after the edit: p = "
            f"{after.prob:.2g}, rank {after.rank}, it says {after.argmax!r}"
        )
    if after.runs_on:
        found.append(
            f"the model goes on inside the word, {after.argmax + after.then!r}: put what ends it "
            f"into the target, for example {target.rstrip() + '.'!r}"
        )
    return found


def greedy_continuations(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
) -> list[str]:
    """The ``n_tokens`` most likely next tokens of each prompt (token ids), as text.

    A text ends before an end token, and at the model's last position. The model's own generation
    settings (sampling, penalties) are ignored.

    Raises:
        NonFiniteError: the logits are NaN or infinite.
    """
    return [decode(tok, tokens) for tokens in greedy_tokens(model, tok, prompts, n_tokens)]


def greedy_tokens(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    is_over: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """The token ids of ``greedy_continuations``.

    Args:
        is_over: whether what has been said is enough, by its ids: all rows go on until each is.
    """
    limit, ends = max_positions(model), end_tokens(model, tok)
    room = [n_tokens if limit is None else min(n_tokens, limit + 1 - len(p)) for p in prompts]
    found = []
    for n, tokens in zip(room, _continue(model, prompts, room, ends, is_over), strict=True):
        end = next((i for i, token in enumerate(tokens[:n]) if token in ends), n)
        found.append(tokens[:end])
    return found


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
    ends: Sequence[int],
    is_over: Callable[[Sequence[int]], bool] | None,
) -> list[list[int]]:
    """Greedy tokens after each prompt, at least until one of ``ends`` or ``room[i]`` of them."""
    device, limit = input_device(model), max_positions(model)
    # Padded on the left, so that the last tokens of all rows lie in one column.
    padded = pad_right([prompt[::-1] for prompt in prompts])
    ids, mask = (x.flip(1).to(device) for x in padded)
    wanted, stops = torch.tensor(room, device=device), torch.tensor(ends, device=device)
    parameters = inspect.signature(model.forward).parameters
    passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    takes_positions = "position_ids" in parameters
    takes_cache = passes_on or "past_key_values" in parameters
    head, rows = model.get_output_embeddings(), torch.arange(len(prompts))
    n_prompt, cache = ids.shape[1], None
    done = wanted <= 0
    while not done.all():
        new = ids if cache is None else ids[:, -1:]
        inputs: dict[str, Any] = {"input_ids": new, "attention_mask": mask}
        if takes_cache:
            inputs["past_key_values"] = cache
        if takes_positions:
            # Finished rows run on with the others, but not past the last position.
            positions = (mask.cumsum(1) - 1).clamp(0, None if limit is None else limit - 1)
            inputs["position_ids"] = positions[:, -new.shape[1] :]
        with reading_only(head, rows, torch.full_like(rows, new.shape[1] - 1)):
            out = model(**inputs, use_cache=takes_cache)
        logits = out.logits[0]
        if takes_cache:
            cache = out.past_key_values
        if not torch.isfinite(logits.amax(1)).all():
            texts = [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
            again = partial(logits_at, model, texts, [(0, 0)])
            raise NonFiniteError(f"{_NOT_FINITE}: {where_not_finite(model, again)}")
        best = logits.argmax(1).to(device)
        ids = torch.cat([ids, best[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(best)[:, None]], 1)
        done |= torch.isin(best, stops) | (ids.shape[1] - n_prompt >= wanted)
        if is_over is not None:
            said = ids[:, n_prompt:].tolist()
            done |= torch.tensor([is_over(row) for row in said], device=device)
    return [row[n_prompt:] for row in ids.tolist()]
