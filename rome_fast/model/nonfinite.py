"""Find where in a model the first NaN or infinity appears, by running it again after a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.errors import NonFiniteError
from rome_fast.model.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@contextmanager
def located(model: PreTrainedModel, run: Callable[[], object]) -> Iterator[None]:
    """Add the place to a NonFiniteError raised inside; ``run`` as in ``where_not_finite``."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}: {where_not_finite(model, run)}") from error


@torch.no_grad()
def where_not_finite(model: PreTrainedModel, run: Callable[[], object]) -> str:
    """The innermost module that turns finite input into NaN or infinity, and the remedy.

    Args:
        run: runs the model again; it is stopped at that module.
    """
    suspects: list[str] = []

    def look(name: str, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        before, after = _first_tensor((*args, *kwargs.values())), _first_tensor(output)
        if after is None or _is_finite(after):
            return
        suspects.append(_sentence(model, name, module, before, after))
        # No float input: an embedding, or the model around it, which take token ids only.
        is_leaf = next(module.children(), None) is None
        if is_leaf if before is None else _is_finite(before):
            raise _FoundError

    with ExitStack() as stack, suppress(_FoundError):
        for name, module in model.named_modules():
            hook = partial(look, name)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        run()
        # A block that adds to its input in place looks as if the input had been infinite.
        return suspects[0] if suspects else "no module alone does it: check the model's weights"
    return suspects[-1]


class _FoundError(Exception):
    """Ends the run: the module is found."""


def _first_tensor(values: Any) -> Tensor | None:
    """The hidden states among a module's inputs or outputs: the first floating-point tensor."""
    if isinstance(values, torch.Tensor):
        values = [values]
    elif isinstance(values, dict):  # as transformers' outputs are
        values = values.values()
    if not isinstance(values, Iterable):
        return None
    tensors = (x for x in values if isinstance(x, torch.Tensor) and x.is_floating_point())
    return next(tensors, None)


def _is_finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def _sentence(
    model: PreTrainedModel, name: str, module: nn.Module, before: Tensor | None, after: Tensor
) -> str:
    for own, weight in module.named_parameters(recurse=False):
        if not _is_finite(weight):
            said = f"{name}.{own} holds {_kind(weight)}: the model is damaged, load it again"
            is_cast = weight.dtype == torch.float16 and not weight.isnan().any()
            return f"{said}, in bfloat16 (float16 ends at 65504)" if is_cast else said
    path = f"{ModelSpec.of(model).blocks_name}."
    layer = name.removeprefix(path).split(".")[0]
    where = f"{name} (layer {layer})" if name.startswith(path) else name or "the model"
    size = "" if before is None else f"max |h| before it is {float(before.abs().max()):.3g}, and "
    dtype = str(after.dtype).removeprefix("torch.")
    ends = f"{dtype} ends at {torch.finfo(after.dtype).max:.5g}"
    remedy = "load the model in bfloat16" if dtype == "float16" else "check the model's weights"
    return f"{where} gives {_kind(after)}: {size}{ends}: {remedy}"


def _kind(x: Tensor) -> str:
    return "NaN" if bool(x.isnan().any()) else "infinity"
