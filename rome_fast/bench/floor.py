"""The arithmetic that one edit cannot do without, counted from shapes.

At the rate of the machine's own matrix product it is a time that no implementation of the same
method can beat by better code; the distance of an edit from it is what is left to gain.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast.model.spec import DownProjection, ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rome_fast.prompt.encode import TokenizedEdit


@dataclass(frozen=True)
class Floor:
    """FLOPs of one edit by phase; a multiplication and its addition are two.

    Attributes:
        forward: every real token of every row once through all blocks (keys, values, prefixes).
        loop: the blocks above the edited one, forward in every step and backward in all but the
            last, at the positions that an offset at the lookup token can change.
        head: the output head at the positions that the loss reads, as often.
        solve: C^-1 k with a triangular factor; 0 for the identity.
        update: the rank-one update of the weight.
        loop_tokens: positions that one step of the loop runs through a block.
    """

    forward: int
    loop: int
    head: int
    solve: int
    update: int
    loop_tokens: int

    @property
    def flops(self) -> int:
        """All phases together."""
        return self.forward + self.loop + self.head + self.solve + self.update

    def seconds(self, flops_per_s: float) -> float:
        """What they take at a given rate."""
        return self.flops / flops_per_s


def floor_of(
    spec: ModelSpec, projection: DownProjection, tokens: TokenizedEdit, n_steps: int, identity: bool
) -> Floor:
    """Count one edit of ``projection``.

    Args:
        n_steps: how many losses were computed; one fewer updates of the offset.
        identity: C is the identity, so nothing is solved.

    Attention counts the causal pairs alone, at the residual stream's width. A backward counts as
    much as its forward: no gradient of a weight is needed.
    """
    lengths, lookup = tokens.attention_mask.sum(1), tokens.lookup_idx
    contexts = slice(0, tokens.n_contexts)
    kl_lookup = lookup[tokens.n_contexts : tokens.n_contexts + 1]
    first = torch.cat([lookup[contexts], kl_lookup])
    # The KL row is read at its lookup token: what comes after it there is never needed.
    end = torch.cat([lengths[contexts], kl_lookup + 1])
    above = list(spec.blocks)[projection.layer + 1 :]
    passes = 2 * n_steps - 1
    n_read = tokens.n_contexts * len(tokens.said_ids) + 1
    d_key, d_value = projection.d_key, projection.d_value
    nothing_before = torch.zeros_like(lengths)
    return Floor(
        forward=_blocks_flops(list(spec.blocks), nothing_before, lengths, spec.d_model),
        loop=passes * _blocks_flops(above, first, end, spec.d_model),
        head=passes * 2 * n_read * _head_weights(spec),
        solve=0 if identity else 2 * d_key**2,
        update=2 * d_key * d_value,
        loop_tokens=int((end - first).sum()),
    )


def _blocks_flops(blocks: list[nn.Module], first: Tensor, end: Tensor, d_model: int) -> int:
    """One forward of the positions first[i] .. end[i] - 1 of each row i through the blocks."""
    weights = sum(p.numel() for block in blocks for p in block.parameters() if p.dim() == 2)
    n_tokens = int((end - first).sum())
    pairs = int((end * (end + 1) - first * (first + 1)).sum()) // 2
    # A pair of positions is one product with the query and one with the value.
    return 2 * weights * n_tokens + len(blocks) * 2 * 2 * d_model * pairs


def _head_weights(spec: ModelSpec) -> int:
    head = spec.model.get_output_embeddings()
    return 0 if head is None else int(head.weight.numel())


def gemm_rate(
    n_rows: int,
    d_in: int,
    d_out: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    repeats: int = 20,
) -> float:
    """FLOP/s of [n_rows, d_in] x [d_in, d_out], the best of several; the first does not count."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in ((n_rows, d_in), (d_in, d_out))
    )
    seconds = []
    for _ in range(repeats + 1):
        _synchronize(left.device)
        started = time.perf_counter()
        torch.mm(left, right)
        _synchronize(left.device)
        seconds.append(time.perf_counter() - started)
    return 2 * n_rows * d_in * d_out / min(seconds[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
