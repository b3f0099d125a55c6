"""Teacher-forced scores of many questions in few forwards.

Questions of all cases run in batches of similar length; a text that another one begins with is not
run again, and the head runs only where an answer is read. An edit can be tried without writing it:
W x + v (u . x) is what the edited matrix gives, so one forward holds the questions of many edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rome_fast.errors import InvalidRequestError
from rome_fast.model.intercept import hooked
from rome_fast.model.nonfinite import located
from rome_fast.model.spec import embedding_rows, input_device, max_positions
from rome_fast.prompt.logits import log_probs_of, logits_at
from rome_fast.prompt.target import Asked, continuations
from rome_fast.timings import progress_bar

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.records import Question
    from rome_fast.model.spec import DownProjection
    from rome_fast.types import RankOneUpdate

# Tokens of one forward, padding included. On a CPU few are faster: their activations stay in the
# cache.
BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
# Logits of one forward.
BATCH_LOGITS = 2**25


class EncodedQuestion(NamedTuple):
    """A question as token ids; those of the answer are as it follows the prompt."""

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]

    @property
    def row(self) -> tuple[int, ...]:
        """What the model reads: all but the answer's last token."""
        return (*self.prompt_ids, *self.target_ids[:-1])


class Row(NamedTuple):
    """What the model reads, and the number of the update that it is read under (-1: none)."""

    edit: int
    ids: tuple[int, ...]


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

    -1 in ``edit_of`` leaves the model as it is. Where weights are float32 or wider this is the
    model with the update written, to rounding; half-precision weights round what is written.
    """

    projection: DownProjection
    updates: Sequence[RankOneUpdate]
    edit_of: Sequence[int]


def score(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    trial: Trial | None = None,
) -> list[Score]:
    """One Score a question, in order.

    Raises:
        InvalidRequestError: a question has no tokens, or more than the model takes.
        NonFiniteError: the logits at an answer are NaN or infinite.
    """
    return score_encoded(model, encode_questions(model, tok, questions), trial)


def encode_questions(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> list[EncodedQuestion]:
    """Token ids of each question; see ``score`` for what it raises."""
    for question in questions:
        if not (question.prompt.strip() and question.target.strip()):
            raise InvalidRequestError(f"a question needs a prompt and an answer: {question}")
    found = continuations(tok, [Asked(q.prompt, q.target, q.chat, q.space) for q in questions])
    encoded = [EncodedQuestion(tuple(c.prompt_ids), tuple(c.target_ids)) for c in found]
    limit = max_positions(model)
    for question, ids in zip(questions, encoded, strict=True):
        if limit is not None and len(ids.row) > limit:
            raise InvalidRequestError(
                f"question {question.prompt[:60]!r} and its answer make {len(ids.row)} tokens, but "
                f"the model takes {limit}"
            )
    return encoded


def score_encoded(
    model: PreTrainedModel,
    questions: Sequence[EncodedQuestion],
    trial: Trial | None = None,
    *,
    progress: bool = False,
) -> list[Score]:
    """``score`` of questions that are encoded already."""
    edit_of = [-1] * len(questions) if trial is None else trial.edit_of
    wanted = [Row(edit, q.row) for edit, q in zip(edit_of, questions, strict=True)]
    run_as = longest_rows(wanted)
    askers: dict[Row, list[int]] = {}
    for number, row in enumerate(wanted):
        askers.setdefault(run_as[row], []).append(number)
    rows = list(askers)
    scores: dict[int, Score] = {}
    n_tokens = tokens_of_a_forward(model)
    n_rows = max(1, BATCH_LOGITS // embedding_rows(model))
    with progress_bar(show=progress, total=len(rows), desc="questions", unit="row") as bar:
        for batch in batches([len(row.ids) for row in rows], n_tokens, n_rows):
            asked = [(at, i) for at, row in enumerate(batch) for i in askers[rows[row]]]
            with tried(trial, [rows[row].edit for row in batch]):
                made = _score_batch(
                    model,
                    [rows[row].ids for row in batch],
                    [(at, questions[i]) for at, i in asked],
                )
            scores.update(zip((i for _, i in asked), made, strict=True))
            bar.update(len(batch))
    return [scores[i] for i in range(len(questions))]


def tokens_of_a_forward(model: PreTrainedModel) -> int:
    """How many tokens, padding included, one forward takes on the model's device."""
    return BATCH_TOKENS.get(input_device(model).type, 4096)


def longest_rows(rows: Iterable[Row]) -> dict[Row, Row]:
    """Each row -> a row that begins with it, or itself; as few different rows as possible.

    A decoder does not look ahead: what follows a text does not change its logits within the text.
    """
    run_as: dict[Row, Row] = {}
    longest = None
    # Sorted, a row comes right before those that begin with it.
    for row in sorted(set(rows), reverse=True):
        if longest is None or longest.edit != row.edit or longest.ids[: len(row.ids)] != row.ids:
            longest = row
        run_as[row] = longest
    return run_as


def batches(lengths: Sequence[int], n_tokens: int, n_rows: int) -> Iterator[list[int]]:
    """Numbers of rows, similar lengths together; ``n_tokens``, with padding, bound each batch."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and ((len(batch) + 1) * lengths[i] > n_tokens or len(batch) == n_rows):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _score_batch(
    model: PreTrainedModel,
    rows: Sequence[tuple[int, ...]],
    asked: Sequence[tuple[int, EncodedQuestion]],
) -> list[Score]:
    """Scores of (row, question) pairs; the logits of one place serve all questions about it."""
    places: dict[tuple[int, int], int] = {}
    at = [
        places.setdefault((row, len(question.prompt_ids) - 1 + k), len(places))
        for row, question in asked
        for k in range(len(question.target_ids))
    ]
    logits = logits_at(model, rows, list(places))
    targets = torch.tensor([i for _, question in asked for i in question.target_ids])
    with located(model, lambda: logits_at(model, rows, list(places))):
        log_probs = log_probs_of(logits, torch.tensor(at), targets)
    best = logits.argmax(-1)[at]
    counts = [len(question.target_ids) for _, question in asked]
    parts = zip(asked, _split(log_probs, counts), _split(best, counts), strict=True)
    return [Score(question.target_ids, lp, am) for (_, question), lp, am in parts]


def _split(x: Tensor, counts: Sequence[int]) -> list[tuple[Any, ...]]:
    return [tuple(part.tolist()) for part in x.cpu().split(list(counts))]


@contextmanager
def tried(
    trial: Trial | None, edit_of_row: Sequence[int]
) -> Iterator[Callable[[Tensor], None] | None]:
    """While open, each row of a batch runs with its own update of the matrix (-1: none).

    Yields what has to be told which rows go on, where others are taken out of the batch.
    """
    if trial is None:
        yield None
        return
    edits = torch.tensor(edit_of_row)
    device = trial.projection.weight.device
    u = torch.stack([update.u for update in trial.updates]).to(device)[edits]
    v = torch.stack([update.v for update in trial.updates]).to(device)[edits]
    v = v * (edits >= 0).to(v)[:, None]

    def narrow(rows: Tensor) -> None:
        nonlocal u, v
        u, v = u[rows.to(device)], v[rows.to(device)]

    def add(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        keys = args[0].reshape(len(u), -1, args[0].shape[-1])
        along = torch.einsum("ntk,nk->nt", keys, u.to(keys))
        return output + (along[..., None] * v.to(output)[:, None]).view_as(output)

    with hooked(trial.projection.module, add):
        yield narrow
