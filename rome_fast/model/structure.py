"""A decoder's parts by structure: its list of blocks, and the matrix that each block's MLP ends in.

A decoder is a list of like blocks; in each block the MLP ends in one dense matrix that maps the
wide activation (the key) back to the residual stream (the value). No table of model names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import nn

from rome_fast.errors import UnsupportedModelError
from rome_fast.model.wrappers import base_modules, inner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Attention also ends in a matrix that writes to the residual stream. It is told from the MLP by the
# name of the submodule that holds it, the only part of a path on which all families agree.
ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)
# Experts whose weights are neither 3-D nor a list (DBRX).
_EXPERTS = re.compile(r"(^|\.)(experts|router)($|\.)")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """(path, list) of the text decoder's blocks.

    That is the list nearest to the token embedding in the module tree; of equally near ones, the
    longest. An image tower may be longer, but it has its own embedding.

    Raises:
        UnsupportedModelError: there is no such list.
    """
    modules = dict(base_modules(model))
    embedding = inner(model.get_input_embeddings())
    place = next((name for name, module in modules.items() if module is embedding), "").split(".")
    lists = {name: m for name, m in modules.items() if isinstance(m, nn.ModuleList)}
    # A list inside a block holds experts, not blocks.
    outer = [n for n in lists if not any(n.startswith(f"{other}.") for other in lists)]
    if not outer:
        raise UnsupportedModelError(f"{type(model).__name__} has no list of decoder blocks to edit")

    def nearness(name: str) -> tuple[int, int, int]:
        path = name.split(".")
        n_common = next(
            (i for i, (a, b) in enumerate(zip(path, place, strict=False)) if a != b),
            min(len(path), len(place)),
        )
        return n_common, n_common - len(path), len(lists[name])

    name = max(outer, key=nearness)
    return name, lists[name]


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is GPT-2's Conv1D, which keeps its matrix as [inputs, outputs]."""
    # Parametrised modules are of a class that torch derives.
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def sizes(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear map, however its weight is stored; None for other modules.

    The shape of a quantised weight is not that of its matrix.
    """
    weight = getattr(module, "weight", None)
    if is_conv1d(module) and isinstance(weight, torch.Tensor):
        return int(weight.shape[0]), int(weight.shape[1])
    n_in, n_out = (getattr(module, name, None) for name in ("in_features", "out_features"))
    return (n_in, n_out) if isinstance(n_in, int) and isinstance(n_out, int) else None


def routed_experts(block: nn.Module) -> list[str]:
    """Paths of the modules in a block through which tokens are routed; none in a dense block."""
    modules = list(base_modules(block))
    return [n for n, m in modules if _EXPERTS.search(n) or _is_stacked(m) or _is_list_of_mlps(m)]


def down_projections(block: nn.Module, d_model: int) -> list[tuple[str, nn.Module]]:
    """(path, module) of the maps to the residual stream outside of attention and routed experts.

    Their input is wider than the residual stream; that of a shared expert may be narrower.
    """
    routed = [f"{name}." for name in routed_experts(block)]
    found = []
    for name, module in base_modules(block):
        shape = sizes(module)
        if shape is None or ATTENTION.search(name) or f"{name}.".startswith(tuple(routed)):
            continue
        is_wider = shape[0] > d_model or (routed and shape[0] != d_model)
        if shape[1] == d_model and is_wider:
            found.append((name, module))
    return found


def _is_stacked(module: nn.Module) -> bool:
    """Whether it holds the matrices of several experts as one tensor."""
    if isinstance(module, _CONVOLUTIONS):
        return False
    return any(p.dim() == 3 for p in module.parameters(recurse=False))


def _is_list_of_mlps(module: nn.Module) -> bool:
    """Whether it is a list of several modules whose matrices have the same shapes."""
    if not isinstance(module, nn.ModuleList) or len(module) < 2:
        return False
    shapes = [[sizes(m) for _, m in base_modules(child) if sizes(m)] for child in module]
    return bool(shapes[0]) and all(shape == shapes[0] for shape in shapes)
