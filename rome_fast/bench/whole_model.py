"""The slow and obvious way to make the same edit, as a baseline.

Every step of the search runs the whole, unmodified model over all rows and all positions, with
logits everywhere, as the reference implementations do; the keys take a forward of their own. The
loss and the update are the library's: what differs is only what is computed for them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from rome_fast import ops
from rome_fast.bench.case import factored
from rome_fast.bench.peers import PeerEdit
from rome_fast.bench.setting import commit
from rome_fast.editor import Clock
from rome_fast.key import Keys, widen
from rome_fast.models import DownProjection, ModelSpec, frozen, input_device
from rome_fast.tokens import TokenizedEdit, encode
from rome_fast.update import apply_update_, build_constraint
from rome_fast.value import LOSS_FOUND, _Objective

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.hparams import RomeHparams
    from rome_fast.types import EditRequest


class WholeModel:
    """A peer that makes the library's edit without any of its shortcuts."""

    name = "whole model"
    supports_second_moment = True

    def __init__(self) -> None:
        self.commit = commit() or ""

    def edit(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        request: EditRequest,
        hparams: RomeHparams,
        context_templates: Sequence[str],
        second_moment: Tensor | None,
    ) -> PeerEdit:
        """The update is solved for and written to a copy of the matrix."""
        moment = None if second_moment is None else factored(second_moment)
        clock = Clock()
        spec = ModelSpec.of(model)
        projection = spec.down_projection(hparams.layer)
        tokens = encode(tok, request, context_templates, hparams.fact_token)
        clock.lap("prepare")
        with torch.inference_mode(False), frozen(model):
            run = _whole_forward(model, tokens)
            keys = _keys(run, projection, tokens)
            clock.lap("key")
            delta, losses = _search(run, projection, tokens, keys.value_init, hparams)
            clock.lap("value")
        constraint = build_constraint(hparams.variant, keys, delta, moment)
        backend = ops.resolve_backend("auto", projection.weight.device.type)
        spare = dataclasses.replace(projection, module=copy.deepcopy(projection.module))
        update = apply_update_(spare, constraint, moment, backend)
        clock.lap("update")
        total = sum(clock.seconds.values())
        return PeerEdit(update.dense(), losses, {**clock.seconds, "total": total})


def _whole_forward(model: PreTrainedModel, tokens: TokenizedEdit) -> Callable[[], Tensor]:
    """A function that returns the logits of all rows at all positions, [n, t, vocabulary]."""
    device = input_device(model)
    ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
    return lambda: model(input_ids=ids, attention_mask=mask, use_cache=False).logits


@torch.no_grad()
def _keys(run: Callable[[], Tensor], projection: DownProjection, tokens: TokenizedEdit) -> Keys:
    seen: list[Tensor] = []

    def keep(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.extend((args[0], output))

    with _hooked(projection, keep):
        run()
    n_rows, length = tokens.input_ids.shape
    rows = torch.arange(n_rows)
    keys, values = (widen(x).view(n_rows, length, -1)[rows, tokens.lookup_idx] for x in seen)
    contexts = slice(0, tokens.n_contexts)
    return Keys(
        key=keys[contexts].mean(0),
        prompt_key=keys[tokens.prompt_row],
        mean_value=values[contexts].mean(0),
        value_init=values[tokens.prompt_row],
    )


def _search(
    run: Callable[[], Tensor],
    projection: DownProjection,
    tokens: TokenizedEdit,
    value_init: Tensor,
    hparams: RomeHparams,
) -> tuple[Tensor, tuple[float, ...]]:
    """Adam on the offset, as in kmeng01/rome's compute_v.py; the offset and the losses."""
    delta = torch.zeros_like(value_init, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=hparams.v_lr)
    objective = _Objective(tokens, value_init, hparams)
    lookup, losses = tokens.lookup_idx, []

    def move(module: Any, args: Any, output: Tensor) -> Tensor:
        flat = output.reshape(-1, output.shape[-1])
        at = torch.arange(len(lookup)) * (len(flat) // len(lookup)) + lookup
        moved = flat.index_put((at.to(flat.device),), delta.to(flat.dtype), accumulate=True)
        return moved.view_as(output)

    with _hooked(projection, move), torch.enable_grad():
        for _ in range(hparams.v_num_grad_steps):
            loss, said = objective(run()[objective.read_at], delta)
            losses.append(loss.item())
            found = losses[-1] < LOSS_FOUND and (hparams.variant == "original" or bool(said))
            if found or len(losses) == hparams.v_num_grad_steps:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                delta.mul_(
                    (hparams.clamp_norm_factor * value_init.norm() / delta.norm()).clamp(max=1)
                )
    return delta.detach(), tuple(losses)


@contextmanager
def _hooked(projection: DownProjection, hook: Callable[..., Any]) -> Iterator[None]:
    handle = projection.module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
