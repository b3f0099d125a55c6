"""Targets of a chat that are no answer in the model's own words, and the sentence to use instead.

A model answers a question with a sentence. An edit that makes it begin with a bare word takes, and
then other questions begin with odd words too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rome_fast.model.wrappers import inner
from rome_fast.prompt.border import space_between
from rome_fast.prompt.greedy import greedy_tokens
from rome_fast.prompt.ids import decode
from rome_fast.prompt.logits import logits_at
from rome_fast.prompt.target import find_target_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Of an answer: about a sentence.
N_TOKENS = 20
_ENDS = (".", "!", "?", "。", "\uff01", "\uff1f", "।", "؟")
# Nats that a likeness of 1 is worth where the place of the target in an answer is looked for.
_LIKENESS = 10.0
# A word less alike than this, and less likely than that, does not take another's place.
_ALIKE, _LIKELY = 0.25, 0.01


@torch.no_grad()
def not_its_own_words(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    targets: Sequence[str],
    prompts: Sequence[Sequence[int]],
    target_ids: Sequence[Sequence[int]],
) -> list[str]:
    """For each prompt in a chat a remark for the user, or "" where the target will do.

    It will where it ends as a sentence does, or begins as the model's own answer begins.

    Args:
        targets, target_ids: as they stand behind the prompts, as texts and as token ids.
        prompts: token ids, with the chat template's.

    Raises:
        NonFiniteError: the logits are NaN or infinite.
    """
    bare = [i for i, target in enumerate(targets) if not target.rstrip().endswith(_ENDS)]
    remarks = [""] * len(targets)
    if not bare:
        return remarks
    answers = greedy_tokens(model, tok, [prompts[i] for i in bare], N_TOKENS)
    for i, answer in zip(bare, answers, strict=True):
        if answer and answer[0] != target_ids[i][0]:
            remarks[i] = _remark(model, tok, targets[i].strip(), prompts[i], answer)
    return remarks


def _remark(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    target: str,
    prompt: Sequence[int],
    answer: Sequence[int],
) -> str:
    sentence = _with_target(model, tok, target, prompt, answer)
    instead = f", for example {sentence!r}" if sentence else ""
    return (
        f"target {target!r} does not begin as the model answers here, "
        f"{decode(tok, answer).strip()!r}: other questions may be answered oddly after such an "
        f"edit; give the whole sentence as the target{instead}"
    )


def _with_target(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    target: str,
    prompt: Sequence[int],
    answer: Sequence[int],
) -> str | None:
    """The answer up to the word that the target can stand for, and the target; None: no such."""
    places = [(0, len(prompt) + i) for i in range(len(answer) - 1)]
    if not places:
        return None
    before = decode(tok, answer[:1])
    [first, *_] = find_target_ids(tok, before, target)
    logits = logits_at(model, [[*prompt, *answer]], places)
    log_probs = logits.double().log_softmax(1)[:, first].cpu()
    alike = _likeness(model, first, answer[1:])
    at = int((log_probs + _LIKENESS * alike).argmax())
    if alike[at] < _ALIKE and log_probs[at].exp() < _LIKELY:
        return None
    words = decode(tok, answer[: at + 1]).strip()
    ends = next((end for end in _ENDS if decode(tok, answer).rstrip().endswith(end)), ".")
    return f"{words}{space_between(words, target)}{target}{ends}"


def _likeness(model: PreTrainedModel, token: int, others: Sequence[int]) -> Tensor:
    """Cosine of a token's embedding with others', float64 [n]; their common mean taken out."""
    table = inner(model.get_input_embeddings()).weight
    assert isinstance(table, torch.Tensor)
    rows = table[torch.tensor([token, *others], device=table.device)].double()
    rows -= table.mean(0, dtype=torch.float32)
    cosines: Tensor = torch.nn.functional.cosine_similarity(rows[:1], rows[1:]).cpu()
    return cosines
