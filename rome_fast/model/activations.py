"""The input and output of the edited matrix, read in a forward that stops there."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.errors import UnsupportedModelError
from rome_fast.model.intercept import StopForwardError, hooked
from rome_fast.model.precision import widen
from rome_fast.model.spec import DownProjection, embedding_rows, input_device

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@torch.no_grad()
def read_activations(
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
    """The error to raise where a forward on text does not run the matrix."""
    return UnsupportedModelError(
        f"{projection.name}.weight is not used on text alone (a block that looks at images, or a "
        "module that an adapter stands for): name another layer in hparams.layers"
    )


def typical_value_norm(model: PreTrainedModel, projection: DownProjection) -> float:
    """Median norm of what the matrix writes, over random tokens (seeded); a scale for defaults."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(embedding_rows(model), (8, 16), generator=generator)
    _, outputs = read_activations(model, projection, ids, torch.ones_like(ids))
    # The first position is an attention sink in many models, far from all others.
    return float(outputs[:, 1:].norm(dim=-1).median())
