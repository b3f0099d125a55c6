"""The modules of a block that tracing restores, found by structure like the blocks themselves."""

from __future__ import annotations

import inspect
import re
from itertools import chain
from typing import TYPE_CHECKING

from torch import nn

from rome_fast.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.models import ModelSpec

KINDS = ("hidden", "mlp", "attn")
_ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)


def find_part(spec: ModelSpec, layer: int, kind: str) -> nn.Module:
    """The module whose output is the state of this kind: the block itself, its MLP or attention.

    Raises:
        UnsupportedModelError: the block has no such module of its own.
    """
    block = spec.blocks[layer]
    if kind == "hidden":
        return block
    # Norms, dropouts and rotary tables may carry the name of what they stand beside.
    parts = {name: child for name, child in block.named_children() if _has_matrix(child)}
    attention = [child for name, child in parts.items() if _ATTENTION.search(name)]
    others = [child for name, child in parts.items() if not _ATTENTION.search(name)]
    # OPT's MLP has no module of its own: the matrix that ends it is the last of the block.
    found = attention if kind == "attn" else [spec.mlp(layer) or other for other in others[-1:]]
    if not found:
        raise UnsupportedModelError(
            f"kind {kind!r} cannot be traced: layer {layer} of {type(spec.model).__name__} has no "
            f"such module (its own are {', '.join(parts) or 'without matrices'}): leave {kind!r} "
            "out of kinds"
        )
    return found[0]


def residual_of(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor | None:
    """What the module adds to its output by itself (BLOOM, MPT); None where its block does that."""
    signature = inspect.signature(module.forward)
    return signature.bind_partial(*args).arguments.get("residual")


def _has_matrix(module: nn.Module) -> bool:
    # A quantised matrix may be a buffer.
    return any(tensor.dim() > 1 for tensor in chain(module.parameters(), module.buffers()))
