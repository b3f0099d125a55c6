"""What the model says: probability, rank and greedy continuation, read from its present weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from rome_fast.model.nonfinite import located
from rome_fast.model.spec import max_positions
from rome_fast.prompt.greedy import end_tokens, greedy_tokens
from rome_fast.prompt.ids import decode, pieces
from rome_fast.prompt.logits import log_probs_of, logits_at
from rome_fast.prompt.subject import cuts_a_word

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    first = int(logits[0].argmax())
    if len(target) == 1:
        return Reading(prob, rank, decode(tok, [first]))
    if first in end_tokens(model, tok):
        return Reading(prob, rank, "")
    [more] = greedy_tokens(model, tok, [[*prompt, first]], len(target) - 1)
    return Reading(prob, rank, decode(tok, [first, *more]))


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
