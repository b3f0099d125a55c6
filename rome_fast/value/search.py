"""Logits as a function of the offsets: by the suffix forward, or else by the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from rome_fast.model.intercept import hooked, reading_only
from rome_fast.model.memory import is_out_of_memory
from rome_fast.model.precision import TF32_TOLERANCE, is_tf32, wide_norm
from rome_fast.model.spec import DownProjection, ModelSpec, input_device
from rome_fast.value.batch import joined
from rome_fast.value.first_pass import CANNOT, FirstPass
from rome_fast.value.suffix_forward import SuffixForward

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.value.batch import EditBatch

# How far the suffix's logits at zero offsets may be from the first pass's, relative to their norm.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
_HALF_TOLERANCE = 5e-2


class Search:
    """The forward that the search for v* runs in every step.

    The suffix forward is used only if it reproduces, at zero offsets, the logits of the first pass.
    Rows that the first pass ran in parts run in the same parts.

    Args:
        weights: bfloat16 copies to compute the suffix with; None computes it as the model does.

    Attributes:
        obstacle: why the whole model is run instead, or "".
    """

    def __init__(
        self,
        spec: ModelSpec,
        projection: DownProjection,
        batch: EditBatch,
        first: FirstPass,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        self.spec, self.projection = spec, projection
        self.obstacle = first.obstacle
        self._expected: Tensor | None = first.logits
        # A part without reads (a bare prompt with a row of its own) need not run.
        parts = [part for part in first.parts if len(part[0].read_rows)] or [(batch, first)]
        self._whole = _together([WholeModel(spec, projection, rows) for rows, _ in parts])
        self._way: Way = self._whole
        self._precise: Way = self._whole
        if not self.obstacle:
            try:
                suffixes = [SuffixForward.of(spec, projection, *part) for part in parts]
                self._precise = _together(suffixes)
                if weights is not None:
                    suffixes = [suffix.in_bfloat16(weights) for suffix in suffixes]
                self._way = _together(suffixes)
            except CANNOT as error:
                self._note(error)

    def logits(self, deltas: Tensor) -> Tensor:
        """[n_reads + n_edits, vocabulary] for the offsets [n_edits, d_value], with gradients.

        All offsets must be zero in the first call.
        """
        if self._expected is None or self._way is self._whole:
            return self._way.logits(deltas)
        try:
            logits = self._way.logits(deltas)
            self.check(logits.detach())
        except CANNOT as error:
            self._note(error)
            self._way = self._whole
            logits = self._way.logits(deltas)
        self._expected = None
        return logits

    def start_again(self) -> None:
        """Run all requests from now on, also those that have stopped, in the model's own dtype."""
        self._way, self._expected = self._precise, None

    @property
    def suffix(self) -> SuffixForward | None:
        """The suffix forward that a step runs; None if it runs the whole model, or in parts."""
        return self._way if isinstance(self._way, SuffixForward) else None

    @property
    def unmoved_logits(self) -> Tensor:
        """The logits at zero offsets: those of the first pass."""
        assert self._expected is not None
        return self._expected

    def check(self, logits: Tensor) -> None:
        """Raise ValueError unless the logits, at zero offsets, match those of the first pass."""
        assert self._expected is not None
        tolerance = _TOLERANCE.get(logits.dtype, _HALF_TOLERANCE)
        if is_tf32(logits.device, logits.dtype):
            tolerance = TF32_TOLERANCE
        difference = float(wide_norm(logits - self._expected) / wide_norm(self._expected))
        if not difference <= tolerance:
            raise ValueError(f"the shortened forward is off by {difference:.1g}")

    def keep(self, edits: Sequence[int]) -> None:
        """Go on with some of the requests only."""
        assert not isinstance(self._way, InParts)  # parts belong to one request
        self._way = self._way.keep(edits)

    def run_whole(self, deltas: Tensor) -> None:
        """Run the same through the whole model, so that hooks see all of its modules."""
        ways = self._way.ways if isinstance(self._way, InParts) else [self._way]
        for way in ways:
            WholeModel(way.spec, way.projection, way.batch).logits(deltas)

    def _note(self, error: Exception) -> None:
        if is_out_of_memory(error):
            raise error
        self.obstacle = f"{type(error).__name__}: {error}".splitlines()[0]


@dataclass(frozen=True, eq=False)
class WholeModel:
    """The slow twin of ``SuffixForward``: all blocks, all positions, in every step."""

    spec: ModelSpec
    projection: DownProjection
    batch: EditBatch

    def logits(self, deltas: Tensor) -> Tensor:
        """As ``SuffixForward.logits``."""
        batch, model = self.batch, self.spec.model
        device = input_device(model)
        offset = deltas[batch.edit_of_row]

        def move(module: Any, args: Any, output: Tensor) -> Tensor:
            flat = output.reshape(-1, output.shape[-1])
            index = batch.flat_lookup.to(flat.device)
            return flat.index_add(0, index, offset.to(flat)).view_as(output)

        head = model.get_output_embeddings()
        with (
            hooked(self.projection.module, move),
            reading_only(head, batch.read_rows, batch.read_positions),
        ):
            logits: Tensor = model(
                input_ids=batch.input_ids.to(device),
                attention_mask=batch.attention_mask.to(device),
                use_cache=False,
            ).logits.squeeze(0)
        return logits

    def keep(self, edits: Sequence[int]) -> WholeModel:
        """The same for some of the requests only."""
        return replace(self, batch=self.batch.select(edits))


@dataclass(frozen=True, eq=False)
class InParts:
    """One request's rows, a part at a time, so that a step holds the activations of one part only.

    Gradient checkpointing: each part runs again when its gradients are taken.
    """

    ways: Sequence[SuffixForward | WholeModel]

    def logits(self, deltas: Tensor) -> Tensor:
        """As ``SuffixForward.logits``."""
        run = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        logits = [run(way.logits, deltas) for way in self.ways]
        return joined([way.batch for way in self.ways], logits)


Way = SuffixForward | WholeModel | InParts


def _together(ways: Sequence[SuffixForward | WholeModel]) -> Way:
    return ways[0] if len(ways) == 1 else InParts(ways)
