"""The model's own forward, cut to what the search for v* reads.

Nothing below the edited block changes while v* is searched: those blocks hand over what they gave
the first time. The head is computed at the positions that the loss reads and at no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.key import StopForwardError
from rome_fast.models import DownProjection, ModelSpec, input_device

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@contextmanager
def tail_forward(
    model: PreTrainedModel,
    projection: DownProjection,
    input_ids: Tensor,
    attention_mask: Tensor,
    read_at: tuple[Tensor, Tensor],
) -> Iterator[Callable[[], Tensor]]:
    """Yield a function that runs the model and returns its logits at ``read_at``.

    Args:
        input_ids, attention_mask: int64 [n, t].
        read_at: (rows [m], positions [m]).

    The function returns [m, vocabulary]; it may be called any number of times while this is open,
    with hooks on the edited block or above it, and gradients flow from there on.
    """
    device = input_device(model)
    ids, mask = input_ids.to(device), attention_mask.to(device)

    def run() -> Tensor:
        logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits

    blocks = list(ModelSpec.of(model).blocks)[: projection.layer]
    head = model.get_output_embeddings()
    with ExitStack() as stack:
        if blocks:
            given = _last_output(blocks[-1], run)
            for block in blocks:
                stack.enter_context(_answers(block, given))
        if head is None:
            yield lambda: run()[read_at]
            return
        stack.enter_context(_reads_only(head, input_ids.shape, read_at))
        yield lambda: run()[0]


@torch.no_grad()
def _last_output(block: nn.Module, run: Callable[[], Tensor]) -> Any:
    """What a block returns, in whatever form its family has; nothing above it is computed."""
    seen: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output)
        raise StopForwardError

    handle = block.register_forward_hook(keep)
    try:
        run()
    except StopForwardError:
        pass
    finally:
        handle.remove()
    return seen[0]


@contextmanager
def _answers(block: nn.Module, output: Any) -> Iterator[None]:
    """While open, the block returns ``output``. Its attributes, which models read, stay."""
    own = vars(block).get("forward")
    vars(block)["forward"] = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if own is None:
            del vars(block)["forward"]
        else:
            vars(block)["forward"] = own


@contextmanager
def _reads_only(
    head: nn.Module, shape: torch.Size, read_at: tuple[Tensor, Tensor]
) -> Iterator[None]:
    """While open, the head sees [1, m, d_model] instead of [n, t, d_model]."""
    rows, positions = read_at

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0].reshape(*shape, -1)
        chosen = hidden[rows.to(hidden.device), positions.to(hidden.device)]
        return (chosen[None], *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()
