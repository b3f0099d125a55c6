"""What the model says: probability, rank and greedy continuation, read from its present weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import NonFiniteError
from rome_fast.intercept import reading_only
from rome_fast.models import input_device
from rome_fast.tokens import decode, pad_right

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Rows of logits at a time.
SLICE = 64


@dataclass(frozen=True)
class Reading:
    """What the model says after a prompt.

    Attributes:
        prob: probability of the target, the product over its tokens.
        rank: the worst rank of a target token given those before it; 1 = greedy says the target.
        argmax: the greedy continuation, as many tokens as the target has.
    """

    prob: float
    rank: int
    argmax: str


@torch.no_grad()
def read_targets(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
) -> list[Reading]:
    """Read one target after each prompt, both as token ids, in one forward.

    Raises:
        NonFiniteError: the logits are NaN or infinite.
    """
    pairs = list(zip(prompts, targets, strict=True))
    rows = [[*prompt, *target[:-1]] for prompt, target in pairs]
    places = [(i, len(p) - 1 + k) for i, (p, t) in enumerate(pairs) for k in range(len(t))]
    logits = logits_at(model, rows, places).split([len(target) for target in targets])
    return [read_logits(model, tok, *pair, x) for pair, x in zip(pairs, logits, strict=True)]


@torch.no_grad()
def logits_at(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], places: Sequence[tuple[int, int]]
) -> Tensor:
    """Logits [len(places), vocabulary] after the tokens (row, position) of rows of token ids.

    One forward of the model as it is; its head runs at these places only.
    """
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
    # A slice at a time: in float64 all of them would take twice the room of the logits.
    totals = torch.cat([part.double().logsumexp(1) for part in logits.split(SLICE)])
    log_probs = logits[places, targets].double() - totals[places]
    if not torch.isfinite(log_probs).all():
        raise NonFiniteError(
            "the model's logits are NaN or infinite: run it in float32 or bfloat16, or check its "
            "weights"
        )
    return log_probs


def read_logits(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    target: Sequence[int],
    logits: Tensor,
) -> Reading:
    """The same from logits [n_target, vocabulary] that the model, as it is now, has given.

    The model runs only where the target has several tokens and is not its answer.
    """
    logits = logits.double().cpu()
    target_ids = torch.tensor(target)
    prob = float(log_probs_of(logits, torch.arange(len(target)), target_ids).sum().exp())
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
    """What a user should know about the two readings of an edit."""
    found = []
    if before.rank == 1:
        found.append(f"the model already said {target!r} before the edit")
    if after.rank > 1:
        found.append(
            f"target {target!r} is not the model's answer after the edit: p = "
            f"{after.prob:.2g}, rank {after.rank}, it says {after.argmax!r}"
        )
    return found


@torch.no_grad()
def greedy_continuations(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
) -> list[str]:
    """The ``n_tokens`` most likely next tokens of each prompt (token ids), as text."""
    rows = [list(ids) for ids in prompts]
    for _ in range(n_tokens):
        input_ids, attention_mask = pad_right(rows)
        logits: Tensor = model(
            input_ids=input_ids.to(input_device(model)),
            attention_mask=attention_mask.to(input_device(model)),
            use_cache=False,
        ).logits
        last = attention_mask.sum(1).to(logits.device) - 1
        best = logits[torch.arange(len(rows), device=logits.device), last].argmax(-1)
        for ids, token in zip(rows, best.tolist(), strict=True):
            ids.append(token)
    return [decode(tok, ids[-n_tokens:]) for ids in rows]
