"""The one forward of an edit: keys, values, and what the search for v* starts from.

Nothing before the subject's last token, and nothing below the edited block, changes while v* is
searched. So the pass also keeps the hidden states that enter the edited block, and the attention
keys and values of that block and those above it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.model.activations import read_activations
from rome_fast.model.intercept import answering, hooked, reading_only
from rome_fast.model.memory import is_out_of_memory
from rome_fast.model.precision import widen
from rome_fast.model.spec import DownProjection, ModelSpec, input_device
from rome_fast.value.batch import joined
from rome_fast.value.prefix import Attention, PrefixSplit, at_positions

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.value.batch import EditBatch


@dataclass(frozen=True, eq=False)
class FirstPass:
    """What one forward over all rows of a batch gives.

    Attributes:
        keys, values: [n_rows, d_key] and [n_rows, d_value], what goes into and comes out of the
            edited matrix at the lookup token; float32, or float64 for a float64 model.
        logits: [n_reads + n_edits, vocabulary], at the batch's reads; None where the family's
            attention cannot be continued from a cache.
        below: what the block below the edited one returned, in its family's form; None for
            block 0.
        attention: keys and values [n_rows, heads, p, d_head] of each block from the edited one
            up, at the positions before the lookup.
        attention_below: [n_rows, heads, t, d_head], of the blocks below it, where they ran.
        obstacle: why the search has to run the whole model, or "".
        parts: if the rows ran in parts, each part and its FirstPass; ``below`` and ``attention``
            are only there.
    """

    keys: Tensor
    values: Tensor
    logits: Tensor | None = None
    below: Any = None
    attention: tuple[Attention, ...] = ()
    attention_below: tuple[Attention, ...] = ()
    obstacle: str = ""
    parts: tuple[tuple[EditBatch, FirstPass], ...] = ()


# The errors of a model that has no such cache, or no such argument.
CANNOT = (TypeError, ValueError, AttributeError, IndexError, NotImplementedError, RuntimeError)


def run_first_pass(
    spec: ModelSpec, projection: DownProjection, batch: EditBatch, below: Any = None
) -> FirstPass:
    """Run the model once; where it cannot fill a cache, up to the edited matrix only.

    Args:
        below: what the block below the edited one returns for these rows, where that is known:
            then only the edited block and those above it run.
    """
    try:
        return _run_with_cache(spec, projection, batch, below)
    except CANNOT as error:
        if is_out_of_memory(error):
            raise
        obstacle = f"{type(error).__name__}: {error}".splitlines()[0]
    inputs, outputs = read_activations(
        spec.model, projection, batch.input_ids, batch.attention_mask
    )
    at = torch.arange(batch.n_rows), batch.lookup_idx
    return FirstPass(inputs[at], outputs[at], obstacle=obstacle)


@torch.no_grad()
def _run_with_cache(
    spec: ModelSpec, projection: DownProjection, batch: EditBatch, below: Any
) -> FirstPass:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    seen: dict[str, Any] = {"below": None}
    model, blocks, cache = spec.model, spec.blocks, DynamicCache()
    device = input_device(model)

    def keep_key_and_value(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        for name, x in ("keys", args[0]), ("values", output):
            seen[name] = widen(x.reshape(-1, x.shape[-1])[batch.flat_lookup.to(x.device)])

    with ExitStack() as stack:
        stack.enter_context(hooked(projection.module, keep_key_and_value))
        if projection.layer > 0:
            block = blocks[projection.layer - 1]
            stack.enter_context(hooked(block, lambda _, __, output: seen.update(below=output)))
        if below is not None:
            for block in blocks[: projection.layer]:
                stack.enter_context(answering(block, below))
        head = model.get_output_embeddings()
        stack.enter_context(reading_only(head, batch.read_rows, batch.read_positions))
        seen["logits"] = model(
            input_ids=batch.input_ids.to(device),
            attention_mask=batch.attention_mask.to(device),
            past_key_values=cache,
            use_cache=True,
        ).logits[0]
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    silent = 0 if below is None else projection.layer
    n_kept, n_run = sum(x.keys is not None for x in layers[silent:]), len(blocks) - silent
    if len(layers) != len(blocks) or n_kept != n_run:
        raise ValueError(f"{n_run} blocks keep {n_kept} sets of keys and values")
    stored: list[Any] = [(layer.keys, layer.values) for layer in layers]
    if below is None:
        seen["attention_below"] = tuple(stored[: projection.layer])
    before = PrefixSplit.at_lookup(batch).before
    seen["attention"] = tuple(
        (at_positions(keys, before), at_positions(values, before))
        for keys, values in stored[projection.layer :]
    )
    return FirstPass(**seen)


def run_in_parts(
    spec: ModelSpec, projection: DownProjection, batch: EditBatch, n_rows: int
) -> FirstPass:
    """As ``run_first_pass`` for the rows of one request, at most ``n_rows`` of them at a time."""
    parts = batch.parts(n_rows)
    passes = [replace(run_first_pass(spec, projection, part), attention_below=()) for part in parts]
    obstacle = next((p.obstacle for p in passes if p.obstacle), "")
    logits = [p.logits for p in passes if p.logits is not None]
    return FirstPass(
        keys=torch.cat([p.keys for p in passes]),
        values=torch.cat([p.values for p in passes]),
        logits=None if obstacle else joined(parts, logits),
        obstacle=obstacle,
        parts=tuple(zip(parts, passes, strict=True)),
    )
