"""Global consistency: what edits do to texts that have nothing to do with them.

After an edit the unedited model is gone, and its probabilities of all tokens at all places do not
fit in memory. The hidden states that its head was given do fit, and the head is not edited: so one
forward of the edited model gives both models' logits, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.errors import InvalidArgumentError
from rome_fast.evaluate.scoring import BATCH_LOGITS, batches, tokens_of_a_forward
from rome_fast.model.nonfinite import located
from rome_fast.model.spec import embedding_rows, input_device, max_positions
from rome_fast.prompt.ids import all_text_ids, pad_right
from rome_fast.prompt.logits import SLICE, log_probs_of, logits_at

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Longest part of a text that is read at once, in tokens.
WINDOW = 256


@dataclass(frozen=True, eq=False)
class Drift:
    """Held texts, and the unedited model's hidden states on them.

    Attributes:
        windows: token ids of the parts of the texts, those of one forward together.
        hidden: for each forward, what the head was given [n_places, d_model], on the CPU.
    """

    windows: tuple[tuple[list[int], ...], ...]
    hidden: tuple[Tensor, ...]

    @classmethod
    @torch.no_grad()
    def baseline(
        cls, model: PreTrainedModel, tok: PreTrainedTokenizerBase, texts: Sequence[str]
    ) -> Drift:
        """Read the texts with the model as it is now.

        Long texts are read in windows of up to 256 tokens. Every token but the first of each text
        is predicted once.

        Raises:
            InvalidArgumentError: no text has two tokens.
        """
        size = min(WINDOW, max_positions(model) or WINDOW)
        rows = [part for ids in all_text_ids(tok, texts) for part in _windows(ids, size)]
        if not rows:
            raise InvalidArgumentError(
                f"held_texts must have a token after another to predict, got {len(texts)} texts "
                "without: give longer ones"
            )
        # Logits of both models at once.
        most = BATCH_LOGITS // (2 * embedding_rows(model))
        n_tokens = min(tokens_of_a_forward(model), most)
        lengths = [len(row) for row in rows]
        windows = tuple(
            tuple(rows[i] for i in batch) for batch in batches(lengths, n_tokens, len(rows))
        )
        hidden = []
        for part in windows:
            with _head_beside(model, part, None) as seen:
                _run(model, part)
            hidden.append(seen[0].cpu())
        return cls(windows, tuple(hidden))

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """Perplexity and KL on the texts, of the same model with other weights below its head.

        Returns:
            "perplexity": exp of the mean negative log-probability of the predicted tokens;
            "kl": mean over the same places of KL(model now || model then) of the next token's
            distribution, in nats, as in the loss for v* (ROME, section 3.1).

        Raises:
            NonFiniteError: the logits are NaN or infinite.
        """
        nll = kl = n = 0.0
        for part, before in zip(self.windows, self.hidden, strict=True):
            with _head_beside(model, part, before):
                now, then = _run(model, part).split(len(before))
            targets = torch.tensor([i for row in part for i in row[1:]], device=now.device)
            with located(model, partial(logits_at, model, part, [(0, 0)])):
                nll -= float(log_probs_of(now, torch.arange(len(now)), targets).sum())
            kl += _kl(now, then)
            n += len(now)
        return {"perplexity": math.exp(nll / n), "kl": kl / n}


def _windows(ids: list[int], size: int) -> Iterator[list[int]]:
    """Parts of up to ``size`` tokens, each beginning with the last token of the one before."""
    for start in range(0, len(ids) - 1, size - 1):
        yield ids[start : start + size]


def _run(model: PreTrainedModel, rows: Sequence[list[int]]) -> Tensor:
    """Logits [m, vocabulary] at all places that the head is given."""
    input_ids, attention_mask = pad_right(rows)
    device = input_device(model)
    logits: Tensor = model(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        use_cache=False,
    ).logits[0]
    return logits


@contextmanager
def _head_beside(
    model: PreTrainedModel, rows: Sequence[list[int]], others: Tensor | None
) -> Iterator[list[Tensor]]:
    """While open, the head is given the places that predict a token, and ``others`` after them.

    Yields:
        A list that gets the hidden states [n_places, d_model] at those places.
    """
    counts = torch.tensor([len(row) - 1 for row in rows])
    row = torch.arange(len(rows)).repeat_interleave(counts)
    place = torch.cat([torch.arange(count) for count in counts.tolist()])
    seen: list[Tensor] = []

    def choose(head: Any, args: tuple[Tensor, ...]) -> Tensor:
        hidden = args[0][row.to(args[0].device), place.to(args[0].device)]
        seen.append(hidden)
        return (hidden if others is None else torch.cat([hidden, others.to(hidden)]))[None]

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield seen
    finally:
        handle.remove()


def _kl(logits: Tensor, reference: Tensor) -> float:
    """Sum over rows of KL(softmax of ``logits`` || softmax of ``reference``), in float64."""
    total = 0.0
    # In slices: all at once in float64 they would take twice the memory of the logits.
    for p, q in zip(logits.split(SLICE), reference.split(SLICE), strict=True):
        log_p, log_q = p.double().log_softmax(1), q.double().log_softmax(1)
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return total
