"""k*: the input of the edited matrix at the lookup token; its output there is the value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import NonFiniteError
from rome_fast.model.spec import DownProjection
from rome_fast.value.batch import EditBatch
from rome_fast.value.first_pass import FirstPass

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Keys:
    """Keys and values of one request before the edit, float32 (float64 for such a model).

    Attributes:
        key: [d_key], mean over the contexts (k*).
        prompt_key: [d_key], of the bare prompt.
        mean_value: [d_value], mean over the contexts of what the matrix writes.
        value_init: [d_value], what it writes on the bare prompt.
    """

    key: Tensor
    prompt_key: Tensor
    mean_value: Tensor
    value_init: Tensor


def mean_keys(projection: DownProjection, batch: EditBatch, first: FirstPass) -> list[Keys]:
    """The keys of each request from those of its rows (ROME, section 3.1, step 1; compute_u.py).

    Raises:
        NonFiniteError: an activation is NaN or infinite.
    """
    if not (torch.isfinite(first.keys).all() and torch.isfinite(first.values).all()):
        raise NonFiniteError(
            f"activations at {projection.name} are NaN or infinite in the first pass"
        )
    n_rows = [len(edit.lookup_idx) for edit in batch.edits]
    parts = zip(batch.edits, first.keys.split(n_rows), first.values.split(n_rows), strict=True)
    return [
        Keys(
            key=keys[: edit.n_contexts].mean(0),
            prompt_key=keys[edit.prompt_row],
            mean_value=values[: edit.n_contexts].mean(0),
            value_init=values[edit.prompt_row],
        )
        for edit, keys, values in parts
    ]
