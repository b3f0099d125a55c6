"""Logits at some places of some rows of tokens, in one forward, and what they say of a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import NonFiniteError
from rome_fast.model.intercept import reading_only
from rome_fast.model.spec import input_device
from rome_fast.prompt.ids import pad_right

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Rows of logits converted to float64 at a time.
SLICE = 64
NOT_FINITE = "reading what the model says, its logits are NaN or infinite"


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
        raise NonFiniteError(NOT_FINITE)
    return log_probs
