"""Documents -> full rows of tokens without padding, and the batches that a forward takes.

A document that does not fit continues in the next row, where its positions start again at 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One sequence: its number, token ids, and each token's position in its own document."""

    index: int
    ids: list[int]
    positions: list[int]

    def __len__(self) -> int:
        return len(self.ids)


def pack_rows(documents: Iterable[list[int]], length: int, budget: int | None) -> Iterator[Row]:
    """Rows of ``length`` tokens, the last one shorter; ``budget`` tokens in all at most."""
    left, index = budget, 0
    ids: list[int] = []
    positions: list[int] = []
    for document in documents:
        read = 0
        while read < len(document):
            limit = length if left is None else min(length, left)
            part = document[read : read + limit - len(ids)]
            read += len(part)
            positions.extend(range(len(part)))
            ids.extend(part)
            if len(ids) == limit:
                yield Row(index, ids, positions)
                ids, positions, index = [], [], index + 1
                if left is not None:
                    left -= limit
                    if not left:
                        return
    if ids:
        yield Row(index, ids, positions)


def stack(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Rows of equal length -> (input_ids, positions), int64 [n, t]."""
    return torch.tensor([r.ids for r in rows]), torch.tensor([r.positions for r in rows])


def block_mask(positions: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [n, 1, t, t] in which a token sees only its own document, and no later token.

    Args:
        positions: int64 [n, t], 0 at the start of each document.
    """
    document = (positions == 0).cumsum(1)
    same = document[:, :, None] == document[:, None, :]
    visible = same & torch.ones_like(same).tril()
    mask = torch.zeros(visible.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
