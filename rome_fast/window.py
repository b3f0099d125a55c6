"""A window of requests, from token ids to keys and values, all on the same weights.

As many requests run at once as memory allows: their first pass is one forward, and so is each step
of their search.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast.batch import EditBatch
from rome_fast.context_states import FirstPasses
from rome_fast.first_pass import FirstPass
from rome_fast.key import Keys, mean_keys
from rome_fast.memory import is_out_of_memory
from rome_fast.models import DownProjection, ModelSpec, embedding_rows
from rome_fast.precision import Bfloat16Weights
from rome_fast.readback import Reading, read_logits, read_targets
from rome_fast.value import Value, optimize_values

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rome_fast.clock import Clock
    from rome_fast.hparams import RomeHparams
    from rome_fast.tokens import TokenizedEdit

# What the activations of one batch may take. On a CPU larger ones are slower: each step passes
# over them, and beyond this they come from memory instead of a cache.
BATCH_BYTES = {"cpu": 2**26, "cuda": 2**30}


@dataclass(frozen=True, eq=False)
class Found:
    """What the update of one request is made of, and what the model says before it.

    Attributes:
        raw_before: of a request in a chat, what it says after the plain prompt.
    """

    tokens: TokenizedEdit
    keys: Keys
    value: Value
    before: Reading
    raw_before: Reading | None = None


class Finder:
    """Finds keys and values of requests on the weights as they are.

    Args:
        clock: books the seconds as "key", "value" and "read before".
    """

    def __init__(
        self,
        spec: ModelSpec,
        tok: PreTrainedTokenizerBase,
        projection: DownProjection,
        hparams: RomeHparams,
    ) -> None:
        self._spec, self._tok = spec, tok
        self._projection, self._hparams = projection, hparams
        self._budget = BATCH_BYTES.get(projection.weight.device.type, 2**30)
        self._at_most = sys.maxsize
        self._first_passes = FirstPasses(spec.model, projection)
        self._copies: Bfloat16Weights | None = None
        if hparams.compute_dtype == "bfloat16" and projection.weight.itemsize > 2:
            self._copies = Bfloat16Weights(spec, projection)

    def find(self, edits: Sequence[TokenizedEdit], clock: Clock) -> list[Found]:
        """One Found a request, in order.

        Raises:
            NonFiniteError: an activation, a loss or a logit is NaN or infinite.
        """
        # Like lengths together: rows are padded to the longest of their batch.
        order = sorted(range(len(edits)), key=lambda i: _size(edits[i]))
        waiting = [edits[i] for i in order]
        done: list[Found] = []
        while len(done) < len(edits):
            batch = self._as_many_as_fit(waiting[len(done) :])
            try:
                done += self._find_at_once(EditBatch.of(batch), clock)
                continue
            except (MemoryError, RuntimeError) as error:
                if len(batch) == 1 or not is_out_of_memory(error):
                    raise
            # Outside of the handler, whose traceback keeps the tensors of the attempt alive.
            self._at_most = len(batch) // 2
        return [found for _, found in sorted(zip(order, done, strict=True), key=lambda x: x[0])]

    def _find_at_once(self, batch: EditBatch, clock: Clock) -> list[Found]:
        model, projection = self._spec.model, self._projection
        first = self._first_passes.run(batch)
        keys = mean_keys(projection, batch, first)
        clock.lap("key")
        value_init = torch.stack([k.value_init for k in keys])
        weights = None if self._copies is None else self._copies.current()
        values = optimize_values(
            model, projection, batch, first, value_init, self._hparams, weights
        )
        clock.lap("value")
        before = self._read_before(batch, first)
        clock.lap("read before")
        return [Found(*f) for f in zip(batch.edits, keys, values, before, strict=True)]

    def _read_before(self, batch: EditBatch, first: FirstPass) -> list[Reading]:
        """From the logits of the first pass where they are those of the bare prompts."""
        model, tok = self._spec.model, self._tok
        prompts = [edit.prompt_ids.tolist() for edit in batch.edits]
        targets = [edit.target_ids.tolist() for edit in batch.edits]
        if first.logits is None or any(e.prompt_row >= e.n_contexts for e in batch.edits):
            return read_targets(model, tok, prompts, targets)
        starts = [e.prompt_row * len(e.target_ids) for e in batch.edits]
        reads = first.logits.split([*torch.bincount(batch.edit_of_read).tolist(), batch.n_edits])
        return [
            read_logits(model, tok, prompt, target, logits[start : start + len(target)])
            for prompt, target, logits, start in zip(
                prompts, targets, reads[:-1], starts, strict=True
            )
        ]

    def _as_many_as_fit(self, edits: Sequence[TokenizedEdit]) -> Sequence[TokenizedEdit]:
        n = 1
        while n < min(len(edits), self._at_most) and self._bytes(edits[: n + 1]) <= self._budget:
            n += 1
        return edits[:n]

    def _bytes(self, edits: Sequence[TokenizedEdit]) -> int:
        """About what the activations take: the first pass' attention, the search, the logits."""
        spec, projection = self._spec, self._projection
        n_rows = sum(len(edit.lookup_idx) for edit in edits)
        longest = max(edit.input_ids.shape[1] for edit in edits)
        columns = max(_size(edit)[0] for edit in edits)
        n_reads = sum(edit.n_contexts * len(edit.target_ids) + 1 for edit in edits)
        attention = n_rows * longest * spec.n_layers * 2 * spec.d_model
        n_above = spec.n_layers - projection.layer
        search = n_rows * columns * n_above * (3 * projection.d_key + 10 * spec.d_model)
        # Logits, their log-softmax, and the gradients of both, in float32.
        logits = n_reads * embedding_rows(spec.model) * 16
        return (attention + search) * projection.weight.itemsize + logits


def _size(edit: TokenizedEdit) -> tuple[int, int]:
    """How many tokens of its longest row run in every step, and in the first pass."""
    columns = int((edit.attention_mask.sum(1) - edit.lookup_idx)[: edit.n_contexts].max())
    return columns, edit.input_ids.shape[1]
