"""Teacher-forced scores of many questions in few forwards.

Questions of all cases are sorted by length and run in batches of like length; the head runs only
where an answer is read. An edit can be tried without writing it: W x + v (u . x) is what the
edited matrix gives, so one forward holds the questions of many edits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.errors import NonFiniteError
from rome_fast.intercept import hooked, reading_only
from rome_fast.models import input_device
from rome_fast.tokens import find_target_ids, pad_right, text_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.records import Question
    from rome_fast.models import DownProjection
    from rome_fast.types import RankOneUpdate

# Tokens of one forward, padding included.
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Score:
    """What the model says of one question's answer, given the prompt and the answer so far.

    Attributes:
        target_ids: tokens of the answer.
        log_probs: natural logarithm of each one's probability.
        argmax_ids: the likeliest token in the place of each.
    """

    target_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    argmax_ids: tuple[int, ...]

    @property
    def nll(self) -> float:
        """Mean negative log-probability of the answer's tokens (kmeng01/rome's measure)."""
        return -sum(self.log_probs) / len(self.log_probs)

    @property
    def accuracy(self) -> float:
        """Share of the answer's tokens that are the likeliest (EasyEdit's measure)."""
        return sum(map(int.__eq__, self.target_ids, self.argmax_ids)) / len(self.target_ids)

    @property
    def exact(self) -> bool:
        """Whether greedy decoding says the whole answer."""
        return self.target_ids == self.argmax_ids


@dataclass(frozen=True)
class Trial:
    """Updates that are tried without being written: ``updates[edit_of[i]]`` for question i.

    -1 in ``edit_of`` leaves the model as it is.
    """

    projection: DownProjection
    updates: Sequence[RankOneUpdate]
    edit_of: Sequence[int]


def encode_question(
    tok: PreTrainedTokenizerBase, question: Question
) -> tuple[list[int], list[int]]:
    """(ids of the prompt, ids of the answer), the answer's as the prompt is followed by it."""
    prompt = question.prompt.rstrip(" ")
    return text_ids(tok, prompt), find_target_ids(tok, prompt, question.target)


@torch.no_grad()
def score(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    trial: Trial | None = None,
) -> list[Score]:
    """One Score a question, in order.

    Raises:
        NonFiniteError: the logits at an answer are NaN or infinite.
    """
    encoded = [encode_question(tok, question) for question in questions]
    lengths = [len(prompt) + len(target) - 1 for prompt, target in encoded]
    scores: dict[int, Score] = {}
    for batch in batches(lengths):
        with _tried(trial, batch):
            parts = _score_batch(model, [encoded[i] for i in batch])
        scores.update(zip(batch, parts, strict=True))
    return [scores[i] for i in range(len(questions))]


def batches(lengths: Sequence[int], n_tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Numbers of rows, like lengths together, as many as ``n_tokens`` hold with their padding."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > n_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _score_batch(
    model: PreTrainedModel, encoded: Sequence[tuple[list[int], list[int]]]
) -> list[Score]:
    input_ids, attention_mask = pad_right([[*p, *t[:-1]] for p, t in encoded])
    counts = [len(target) for _, target in encoded]
    rows = torch.arange(len(encoded)).repeat_interleave(torch.tensor(counts))
    columns = torch.cat([torch.arange(len(t)) + len(p) - 1 for p, t in encoded])
    device = input_device(model)
    with reading_only(model.get_output_embeddings(), rows, columns):
        logits: Tensor = model(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            use_cache=False,
        ).logits[0]
    log_probs = logits.double().log_softmax(-1)
    wanted = torch.tensor([i for _, target in encoded for i in target], device=logits.device)
    chosen, best = log_probs.gather(1, wanted[:, None])[:, 0], logits.argmax(-1)
    if not torch.isfinite(chosen).all():
        raise NonFiniteError(
            "the model's logits are NaN or infinite: run it in float32 or bfloat16, or check its "
            "weights"
        )
    return [
        Score(tuple(target), tuple(lp), tuple(am))
        for (_, target), lp, am in zip(
            encoded, _split(chosen, counts), _split(best, counts), strict=True
        )
    ]


def _split(x: Tensor, counts: Sequence[int]) -> list[list[Any]]:
    return [part.tolist() for part in x.cpu().split(list(counts))]


@contextmanager
def _tried(trial: Trial | None, batch: Sequence[int]) -> Iterator[None]:
    """While open, each row of the batch runs on the edited matrix of its own."""
    if trial is None:
        yield
        return
    edits = torch.tensor([trial.edit_of[i] for i in batch])
    device = trial.projection.weight.device
    u = torch.stack([update.u for update in trial.updates]).to(device)[edits]
    v = torch.stack([update.v for update in trial.updates]).to(device)[edits]
    v = v * (edits >= 0).to(v)[:, None]

    def add(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        keys = args[0].reshape(len(batch), -1, args[0].shape[-1])
        along = torch.einsum("ntk,nk->nt", keys, u.to(keys))
        return output + (along[..., None] * v.to(output)[:, None]).view_as(output)

    with hooked(trial.projection.module, add):
        yield
