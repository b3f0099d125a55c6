"""Rows split in two: the prefix goes into the attention cache, the rest is run."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.model.spec import input_device
from rome_fast.value.buckets import EXACT, Buckets, filled

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DynamicCache, PreTrainedModel

    from rome_fast.value.batch import EditBatch

# Keys and values [n_rows, heads, t, d_head] of one block.
Attention = tuple["Tensor", "Tensor"]


@dataclass(frozen=True, eq=False)
class PrefixSplit:
    """Where each row is split.

    Its first position that runs becomes column 0 of s columns, padded on the right. What comes
    before it is p columns of cache, padded on the left: so all distances between tokens stay what
    they were (sliding windows, ALiBi).

    Attributes:
        before, columns: int64 [n_rows, p] and [n_rows, s], the positions they come from.
        attention_mask: int64 [n_rows, p + s].
    """

    before: Tensor
    columns: Tensor
    attention_mask: Tensor

    @classmethod
    def between(
        cls, first: Tensor, last: Tensor, length: int, buckets: Buckets = EXACT
    ) -> PrefixSplit:
        """Run the positions ``first`` to ``last`` (int64 [n_rows]) of rows of ``length`` tokens."""
        p = filled(int(first.max()), buckets.before)
        s = filled(int((last - first).max()) + 1, buckets.columns)
        before = torch.arange(p) - p + first[:, None]
        columns = torch.arange(s) + first[:, None]
        return cls(
            before=before.clamp(min=0),
            columns=columns.clamp(max=length - 1),
            attention_mask=torch.cat([before >= 0, columns <= last[:, None]], dim=1).long(),
        )

    @classmethod
    def at_lookup(cls, batch: EditBatch) -> PrefixSplit:
        """Run the rows of a batch from the lookup to the last position read.

        The batch lies on the CPU, and so does the split.
        """
        lookup = batch.lookup_idx
        last = lookup.scatter_reduce(0, batch.read_rows, batch.read_positions, "amax")
        return cls.between(lookup, last, batch.input_ids.shape[1], batch.buckets)

    def to(self, device: torch.device) -> PrefixSplit:
        """The same with all tensors on ``device``."""
        tensors = self.before, self.columns, self.attention_mask
        return PrefixSplit(*(x.to(device) for x in tensors))

    @property
    def is_run(self) -> Tensor:
        """bool [n_rows, s]: which columns are not padding."""
        return self.attention_mask[:, self.before.shape[1] :].bool()

    def inputs(
        self, model: PreTrainedModel, input_ids: Tensor, attention: Sequence[Attention]
    ) -> dict[str, Any]:
        """What the model's forward takes to run the columns.

        Args:
            input_ids: int64 [n_rows, s], of the columns.
            attention: of each block, only at the positions ``before``.
        """
        device = input_device(model)
        inputs: dict[str, Any] = {
            "input_ids": input_ids.to(device),
            "attention_mask": self.attention_mask.to(device),
            "use_cache": False,
        }
        if "position_ids" in inspect.signature(model.forward).parameters:
            inputs["position_ids"] = self.columns.to(device)
        if self.before.shape[1]:
            inputs["use_cache"], inputs["past_key_values"] = True, _cache_of(attention)
        return inputs


def _cache_of(attention: Sequence[Attention]) -> DynamicCache:
    """A new cache for each run, which puts longer tensors in place of these.

    They are set, as the cache's own ``update`` would copy them first.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    for keys, values in attention:
        layer = DynamicLayer()
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        layer.dtype, layer.device = keys.dtype, keys.device
        cache.layers.append(layer)
    return cache


def at_positions(x: Tensor, positions: Tensor) -> Tensor:
    """Gather positions [n, m] along the last axis but one of [n, ..., t, d]."""
    n, m = positions.shape
    index = positions.to(x.device).reshape(n, *[1] * (x.dim() - 3), m, 1)
    return x.gather(-2, index.expand(*x.shape[:-2], m, x.shape[-1]))
