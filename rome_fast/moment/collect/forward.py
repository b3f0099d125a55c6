"""Rows -> keys of several layers in one forward that stops at the last of them.

Nothing after the last wanted key is computed: not its down-projection, no later layer, no head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.errors import SecondMomentError
from rome_fast.model.activations import never_runs
from rome_fast.model.intercept import StopForwardError
from rome_fast.model.memory import is_out_of_memory
from rome_fast.model.nonfinite import located
from rome_fast.model.spec import embedding_rows, input_device
from rome_fast.moment.collect.packing import Row, block_mask, stack
from rome_fast.prompt.logits import logits_at

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from rome_fast.model.spec import DownProjection

# (projection, keys [n * t, d_key] as the model computed them, the rows that they are of)
Take = Callable[["DownProjection", "Tensor", list[Row]], None]

# (positions [n, t], dtype) -> further arguments of the model's forward
Inputs = Callable[["Tensor", torch.dtype], dict[str, Any]]

_log = logging.getLogger(__name__)


class KeyReader:
    """Runs packed rows through the model.

    Args:
        projections: of the wanted layers, lowest first.
        separate: keep the documents of a row from seeing each other, where the model allows.
        rows_at_once: how many rows one forward takes; halved when memory runs out.

    Attributes:
        documents: "separate", or "joined" where a row is one sequence to the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        projections: list[DownProjection],
        *,
        separate: bool,
        rows_at_once: int,
    ) -> None:
        self.model = model
        self.projections = projections
        self.rows_at_once = rows_at_once
        self._inputs: Inputs = _joined_inputs
        if separate:
            self._inputs = self._separating_inputs()
        self.documents = "joined" if self._inputs is _joined_inputs else "separate"

    def read(self, rows: list[Row], take: Take) -> None:
        """Hand the keys of every layer and row to ``take``, each exactly once, in order.

        Raises:
            SecondMomentError: a single row does not fit in memory.
        """
        for _, same_length in groupby(rows, key=len):
            batch = list(same_length)
            for first in range(0, len(batch), self.rows_at_once):
                self._read_halving(batch[first : first + self.rows_at_once], take, set())

    def _read_halving(self, rows: list[Row], take: Take, taken: set[str]) -> None:
        """Read the layers that are not in ``taken``; if memory runs out, in halves of the rows."""
        if len(rows) > self.rows_at_once:
            first, second = rows[: self.rows_at_once], rows[self.rows_at_once :]
            # A layer that was taken before memory ran out was taken for all of these rows.
            self._read_halving(first, take, set(taken))
            self._read_halving(second, take, set(taken))
            return
        try:
            ids = [row.ids for row in rows]
            with located(self.model, partial(logits_at, self.model, ids, [(0, 0)])):
                self._forward(rows, take, taken, self._inputs)
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise SecondMomentError(
                    f"no memory for one row of {len(rows[0])} tokens: lower max_length ({error})"
                ) from error
        # Outside of the handler, whose traceback keeps the tensors of the failed pass alive.
        self.rows_at_once = len(rows) // 2
        _log.warning("memory ran out: going on with %d rows at a time", self.rows_at_once)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        self._read_halving(rows, take, taken)

    @torch.no_grad()
    def _forward(self, rows: list[Row], take: Take, taken: set[str], inputs: Inputs) -> None:
        wanted = [p for p in self.projections if p.name not in taken]

        def hand_over(projection: DownProjection, keys: Tensor) -> None:
            take(projection, keys.reshape(-1, projection.d_key), rows)
            taken.add(projection.name)
            if projection is wanted[-1]:
                raise StopForwardError

        handles = [
            p.module.register_forward_pre_hook(lambda _, args, p=p: hand_over(p, args[0]))
            for p in wanted
        ]
        input_ids, positions = stack(rows)
        device = input_device(self.model)
        try:
            self.model(
                input_ids=input_ids.to(device),
                use_cache=False,
                **inputs(positions.to(device), self.model.dtype),
            )
            raise never_runs(wanted[-1])
        except StopForwardError:
            pass
        finally:
            for handle in handles:
                handle.remove()

    def _separating_inputs(self) -> Inputs:
        """The first kind of inputs that gives documents in one row the keys that each has alone.

        ``_joined_inputs``, those of one joined sequence, where none does.
        """
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(embedding_rows(self.model), (13,), generator=generator).tolist()
        first, second = Row(0, ids[:5], list(range(5))), Row(0, ids[5:], list(range(8)))
        both = Row(0, ids, first.positions + second.positions)
        alone = torch.cat([self._last_keys(row, _joined_inputs) for row in (first, second)])
        leak = (self._last_keys(both, _joined_inputs) - alone).norm()
        # Nothing leaks into a first layer parallel to its attention: then rounding is the bound.
        tolerance = 0.05 * leak + torch.finfo(self.model.dtype).eps * alone.norm()
        for inputs in _SEPARATING:
            try:
                packed = self._last_keys(both, inputs)
            except (TypeError, ValueError, RuntimeError, IndexError):
                continue  # this model takes no such input
            if (packed - alone).norm() <= tolerance:
                return inputs
        return _joined_inputs

    def _last_keys(self, row: Row, inputs: Inputs) -> Tensor:
        seen: list[Tensor] = []
        others = {p.name for p in self.projections[:-1]}
        self._forward([row], lambda _, keys, __: seen.append(keys.double()), others, inputs)
        return seen[0]


def _joined_inputs(positions: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    return {}


def _by_positions(positions: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """transformers detects documents by positions that restart, and keeps local attention."""
    return {"position_ids": positions}


def _by_mask(positions: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    return {"position_ids": positions, "attention_mask": block_mask(positions, dtype)}


# Tried in this order; the first that keeps documents apart is used.
_SEPARATING: tuple[Inputs, ...] = (_by_positions, _by_mask)
