"""A second model that shares every tensor with the first but one."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

M = TypeVar("M", bound=nn.Module)


def sharing_all_but(model: M, weight: Tensor) -> M:
    """A model of the same class whose parameters and buffers are those of ``model`` themselves.

    Only ``weight`` is a copy, so the second model costs one matrix more. Modules, configuration
    and hooks are its own. A write into a shared weight changes both models.
    """
    memo: dict[int, object] = {id(t): t for t in chain(model.parameters(), model.buffers())}
    own = weight.detach().clone()
    if isinstance(weight, nn.Parameter):
        own = nn.Parameter(own, requires_grad=weight.requires_grad)
    memo[id(weight)] = own
    return copy.deepcopy(model, memo)
