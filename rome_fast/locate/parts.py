"""The modules of a block that tracing restores, found by structure like the blocks themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from torch import nn

from rome_fast.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.model.spec import ModelSpec

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
    # Norms, dropouts and rotary tables may carry the name of the module that they belong to.
    parts = {name: child for name, child in block.named_children() if _has_matrix(child)}
    attention = [child for name, child in parts.items() if _ATTENTION.search(name)]
    others = [child for name, child in parts.items() if not _ATTENTION.search(name)]
    found = attention[0] if kind == "attn" and attention else None
    if kind == "mlp":
        found = spec.mlp(layer) or _only_one(others)
    if found is None:
        raise UnsupportedModelError(
            f"kind {kind!r} cannot be traced: layer {layer} of {type(spec.model).__name__} has no "
            f"one such module (its own are {', '.join(parts) or 'without matrices'}): leave "
            f"{kind!r} out of kinds"
        )
    return found


def _only_one(modules: Sequence[nn.Module]) -> nn.Module | None:
    """The only module (experts together), or the last of OPT's two matrices without an MLP."""
    bare = all(isinstance(module, nn.Linear) for module in modules)
    return modules[-1] if modules and (bare or len(modules) == 1) else None


def residual_of(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor | None:
    """The residual that the module itself adds (BLOOM, MPT); None where its block adds it."""
    signature = inspect.signature(module.forward)
    return signature.bind_partial(*args).arguments.get("residual")


def _has_matrix(module: nn.Module) -> bool:
    # A quantised matrix may be a buffer.
    return any(tensor.dim() > 1 for tensor in chain(module.parameters(), module.buffers()))
