"""What a model does to vectors that are put into it, in forwards of a few tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.intercept import hidden_of, hooked
from rome_fast.models import DownProjection, ModelSpec, embedding_rows, input_device

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_N_TOKENS = 4


@dataclass(frozen=True, eq=False)
class Ends:
    """What lies before the first block and behind the last one."""

    before: str
    final_norm: nn.Module | None
    after_head: str

    @classmethod
    def of(cls, spec: ModelSpec, table: nn.Module, head: nn.Module) -> Ends:
        """Vectors are put in for the embeddings, and numbers for the head's output."""
        seen: dict[str, Any] = {"norm": None}

        def put_in(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            seen["inside"] = _factor(output, module.weight[args[0]].to(output))
            noise = _noise(output[0]) * output.square().mean().sqrt()
            seen["given"] = torch.stack([0 * noise, noise, 2 * noise])
            return seen["given"]

        def put_out(module: Any, args: Any, output: Tensor) -> Tensor:
            numbers = torch.linspace(-1000, 1000, output.shape[-1]).to(output)
            seen["scores"] = numbers * torch.tensor([1.0, 1e-6, 0.0]).to(output)[:, None, None]
            return seen["scores"].expand(output.shape)

        def maybe_norm(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if "done" in seen and args and not torch.equal(args[0], output):
                seen["norm"] = module

        blocks = {id(m) for block in spec.blocks for m in block.modules()}
        with ExitStack() as stack:
            for module in spec.model.modules():
                if id(module) not in blocks and _is_small(module):
                    stack.enter_context(hooked(module, maybe_norm))
            stack.enter_context(hooked(spec.blocks[-1], lambda *_: seen.update(done=True)))
            stack.enter_context(_entering(spec.blocks[0], lambda x: seen.update(entered=x)))
            stack.enter_context(hooked(table, put_in))
            stack.enter_context(hooked(head, put_out))
            logits = _run(spec.model, 3)
        return cls(
            _before(seen["given"], seen["entered"], seen["inside"]),
            seen["norm"],
            _after_head(seen["scores"][:, 0], logits[:, -1]),
        )


def _before(given: Tensor, entered: Tensor, inside: float | None) -> str:
    """What made of 0, x and 2x [3, t, d] what entered the first block."""
    zero, one, two = entered
    if not _are_close(two - one, one - zero):
        return "a norm"
    said = []
    is_as_wide = entered.shape == given.shape
    factor = _factor(one - zero, given[1]) if is_as_wide else None
    if factor is None or inside is None:
        said.append("a projection")
    elif not _is_one(factor * inside, one.dtype):
        said.append(f"times {factor * inside:.3g}")
    if zero.any():
        said.append("plus positions")
    return ", ".join(said) or "nothing"


def _after_head(scores: Tensor, logits: Tensor) -> str:
    """What made of large scores, of small ones and of zeros [3, vocabulary] the logits."""
    slope, factor = _factor(logits[1], scores[1]), _factor(logits[0], scores[0])
    if slope is None or logits[2].any():
        return "unknown"
    times = [] if _is_one(slope, logits.dtype) else [f"times {slope:.3g}"]
    if factor is None:
        cap = logits[0].abs().max()
        if not _are_close(logits[0], cap * torch.tanh(slope * scores[0].to(cap) / cap)):
            return "unknown"
        times.append(f"soft cap {cap:.3g}")
    return ", ".join(times) or "nothing"


def try_layers(
    spec: ModelSpec, projections: Mapping[int, DownProjection]
) -> dict[int, tuple[str, bool]]:
    """By layer: what follows the matrix, and whether the MLP sees nothing of the attention.

    Of the rows, all of the same tokens, row 2i is changed in block i before its last position, as
    it enters, and row 2i + 1 at the last position, where the matrix writes; the last row never. A
    layer that does not run is left out.
    """
    trials = _Trials(2 * spec.n_layers + 1)
    with ExitStack() as stack:
        for number, projection in projections.items():
            block = spec.blocks[number]
            stack.enter_context(_entering(block, partial(trials.enter, number)))
            stack.enter_context(hooked(projection.module, partial(trials.write, number)))
            stack.enter_context(hooked(block, partial(trials.leave, number)))
        _run(spec.model, trials.n_rows)
    return trials.found


class _Trials:
    """The rows of ``try_layers``, block by block."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self.found: dict[int, tuple[str, bool]] = {}
        self._written: dict[int, tuple[Tensor, Tensor]] = {}

    def enter(self, number: int, hidden: Tensor) -> Tensor:
        self._size = hidden.square().mean().sqrt()
        hidden = hidden.clone()
        hidden[2 * number, :-1] = _noise(hidden[0, :-1]) * self._size
        return hidden

    def write(self, number: int, module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        moved = output.clone()
        # Some families flatten rows and tokens before the MLP.
        rows = moved.view(self.n_rows, _N_TOKENS, -1)
        # So large that the rest of the sum does not drown it in rounding.
        offset = 4 * _noise(rows[0, 0]) * torch.maximum(self._size, rows.square().mean().sqrt())
        rows[2 * number + 1, -1] += offset
        self._written[number] = args[0].reshape(self.n_rows, _N_TOKENS, -1)[:, -1], offset
        return moved

    def leave(self, number: int, module: Any, args: Any, output: Any) -> None:
        keys, offset = self._written[number]
        hidden = hidden_of(output)[:, -1]
        factor = _factor(hidden[2 * number + 1] - hidden[-1], offset, beside=hidden[-1])
        after = "a norm" if factor is None else f"times {factor:.3g}"
        if factor is not None and _is_one(factor, hidden.dtype):
            after = "nothing"
        change, eps = (keys[2 * number] - keys[-1]).norm(), torch.finfo(keys.dtype).eps
        self.found[number] = after, bool(change <= eps * keys[-1].norm())


def _run(model: PreTrainedModel, n_rows: int) -> Tensor:
    """Logits [n_rows, t, vocabulary] of rows of the same few tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(embedding_rows(model), (1, _N_TOKENS), generator=generator)
    ids = ids.expand(n_rows, -1).to(input_device(model))
    logits: Tensor = model(
        input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
    ).logits
    return logits


@contextmanager
def _entering(block: nn.Module, look: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """While open, ``look`` sees, and may replace, the hidden states that enter the block."""

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            changed = look(args[0])
            return None if changed is None else ((changed, *args[1:]), kwargs)
        changed = look(kwargs["hidden_states"])
        return None if changed is None else (args, {**kwargs, "hidden_states": changed})

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _noise(like: Tensor) -> Tensor:
    """Standard normal numbers, always the same."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1)).to(like)


def _factor(x: Tensor, of: Tensor, beside: Tensor | None = None) -> float | None:
    """c with x = c * of, to rounding; None where there is none.

    Args:
        beside: what x was found as a difference from, and is rounded like.
    """
    wide, of = x.double(), of.double()
    factor = float((wide * of).sum() / of.square().sum())
    rounding = 0.0 if beside is None else 2 * torch.finfo(x.dtype).eps * float(beside.norm())
    off = float((wide - factor * of).norm())
    return factor if off <= _tolerance(x.dtype) * float(wide.norm()) + rounding else None


def _are_close(x: Tensor, y: Tensor) -> bool:
    return bool((x.double() - y.double()).norm() <= _tolerance(x.dtype) * y.double().norm())


def _is_one(factor: float, dtype: torch.dtype) -> bool:
    return abs(factor - 1) <= _tolerance(dtype)


def _tolerance(dtype: torch.dtype) -> float:
    """Of a few operations one after the other."""
    return 8 * torch.finfo(dtype).eps


def _is_small(module: nn.Module) -> bool:
    """Whether it holds no other module and no matrix: a norm, an activation, a dropout."""
    return not list(module.children()) and all(p.dim() < 2 for p in module.parameters())
