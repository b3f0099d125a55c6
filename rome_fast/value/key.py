"""k*: the input of the edited matrix at the lookup token; its output there is the value."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.errors import NonFiniteError, UnsupportedModelError
from rome_fast.model.intercept import StopForwardError, hooked
from rome_fast.model.spec import DownProjection, embedding_rows, input_device

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from rome_fast.value.batch import EditBatch
    from rome_fast.value.first_pass import FirstPass


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


@torch.no_grad()
def capture(
    model: PreTrainedModel, projection: DownProjection, input_ids: Tensor, attention_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the model up to ``projection`` and return its input and output.

    Args:
        input_ids, attention_mask: int64 [n, t].

    Returns:
        ([n, t, d_key], [n, t, d_value]), float32, or float64 for a float64 model.
    """
    seen: dict[str, Tensor] = {}

    def keep(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen["input"], seen["output"] = args[0], output
        raise StopForwardError

    device = input_device(model)
    with hooked(projection.module, keep), suppress(StopForwardError):
        model(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            use_cache=False,
        )
    if not seen:
        raise never_runs(projection)
    # Some families flatten batch and time before the MLP.
    n, t = input_ids.shape
    inputs, outputs = (widen(x).reshape(n, t, -1) for x in (seen["input"], seen["output"]))
    return inputs, outputs


def never_runs(projection: DownProjection) -> UnsupportedModelError:
    """What to raise where a text passes the matrix by."""
    return UnsupportedModelError(
        f"{projection.name}.weight is not used on text alone (a block that looks at images, or a "
        "module that an adapter stands for): name another layer in hparams.layers"
    )


def widen(x: Tensor) -> Tensor:
    """Half precision -> float32; float32 and float64 as they are."""
    return x if x.dtype == torch.float64 else x.float()


def typical_value_norm(model: PreTrainedModel, projection: DownProjection) -> float:
    """Median norm of what the matrix writes, over random tokens (seeded); a scale for defaults."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(embedding_rows(model), (8, 16), generator=generator)
    _, outputs = capture(model, projection, ids, torch.ones_like(ids))
    # The first position is an attention sink in many models, far from all others.
    return float(outputs[:, 1:].norm(dim=-1).median())
