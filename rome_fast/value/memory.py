"""How much memory an edit takes.

The estimate is counted from shapes; benchmarks/edit/memory_estimate.py compares it with
measured peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rome_fast.model.memory import format_bytes
from rome_fast.model.spec import DownProjection, ModelSpec, embedding_rows
from rome_fast.value.buckets import EXACT, Buckets, filled

if TYPE_CHECKING:
    from rome_fast.prompt.encode import TokenizedEdit


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that an edit takes beyond its model, by purpose.

    Attributes:
        weight: the copy that undo needs, the float32 sum of a half-precision weight, and the
            bfloat16 copies of ``compute_dtype``.
        second_moment: C and its factor; two thirds more while that is made.
        attention: keys and values of tokens that do not run again, kept for the search or for
            later requests.
        first_pass: activations of the first pass.
        search: activations of one step of the search, kept for its gradients.
        logits: at the positions that the loss reads, with their gradients.
    """

    weight: int
    second_moment: int
    attention: int
    first_pass: int
    search: int
    logits: int

    @property
    def activations(self) -> int:
        """Of the first pass or of the search, whichever takes more."""
        return self.attention + max(self.first_pass, self.search + self.logits)

    @property
    def total(self) -> int:
        """At the peak of the edit."""
        factorisation = self.second_moment * 2 // 3
        return self.weight + self.second_moment + max(self.activations, factorisation)

    def __str__(self) -> str:
        names = ("weight", "second_moment", "attention", "first_pass", "search", "logits")
        parts = (f"{name.replace('_', ' ')} {format_bytes(getattr(self, name))}" for name in names)
        return f"{format_bytes(self.total)} ({', '.join(parts)})"


def estimate(
    spec: ModelSpec,
    projection: DownProjection,
    edits: Sequence[TokenizedEdit],
    *,
    rows_at_once: int | None = None,
    identity: bool = False,
    bfloat16_copies: bool = False,
    buckets: Buckets = EXACT,
) -> MemoryEstimate:
    """Count the bytes taken by requests that are searched together.

    Args:
        rows_at_once: of one request, if its rows run in parts; None for all.
        identity: C is the identity.
        bfloat16_copies: ``compute_dtype`` is ``"bfloat16"`` and the model is not.
        buckets: what their batch is filled up to.
    """
    edits = buckets.filled_edits(edits)
    n_rows = sum(len(edit.lookup_idx) for edit in edits)
    at_once = n_rows if rows_at_once is None else min(n_rows, rows_at_once)
    length = max(edit.input_ids.shape[1] for edit in edits)
    before = filled(max(int(edit.lookup_idx.max()) for edit in edits), buckets.before)
    columns = filled(max(columns_of(edit) for edit in edits), buckets.columns)
    n_reads = filled(sum(map(_n_reads, edits)), buckets.reads) + len(edits)
    size, attention = projection.weight.itemsize, _Attention.of(spec)
    d_key, d_model = projection.d_key, spec.d_model
    layer, n_above = projection.layer, spec.n_layers - projection.layer
    # The states of the contexts are kept for later requests, but not of rows that run in parts.
    n_kept = n_above * before + (layer * length if at_once == n_rows else 0)
    one_block = length * (4 * d_model + 3 * d_key) + length**2 * attention.scores
    mask = length**2 * (1 + size)
    # Activations kept for gradients (several by gated and composed functions), and temporary ones.
    one_step = columns * (6 * d_model + 4 * d_key) + (before + columns) * attention.in_step
    first_pass = (spec.n_layers * length * attention.stored + one_block) * size + mask
    return MemoryEstimate(
        weight=_weight_bytes(spec, projection, bfloat16_copies),
        second_moment=0 if identity else 12 * d_key**2,
        attention=n_rows * n_kept * attention.stored * size,
        first_pass=at_once * first_pass,
        search=at_once * n_above * one_step * size,
        # Logits, their log-softmax, and the gradients of both, in float32.
        logits=n_reads * embedding_rows(spec.model) * 16,
    )


def columns_of(edit: TokenizedEdit) -> int:
    """How many tokens of its longest row run in every step: from the lookup on."""
    behind = edit.attention_mask.sum(1) - edit.lookup_idx
    return int(behind[[*range(edit.n_contexts), *(fact.row for fact in edit.kept)]].max())


def _n_reads(edit: TokenizedEdit) -> int:
    kept = sum(len(fact.target_ids) for fact in edit.kept)
    return edit.n_contexts * len(edit.said_ids) + kept


@dataclass(frozen=True)
class _Attention:
    """Numbers that one block's attention holds.

    Attributes:
        stored: keys and values in the cache, per token.
        in_step: keys and values that a step with gradients holds, per token of the cache or of
            its own: concatenated, and repeated where heads share them.
        scores: per pair of tokens, with their softmax, where the family has no fused kernel.
    """

    stored: int
    in_step: int
    scores: int

    @classmethod
    def of(cls, spec: ModelSpec) -> _Attention:
        config = spec.model.config.get_text_config()
        # A model's own code may use other names: then assume one head of full width.
        heads = int(getattr(config, "num_attention_heads", None) or 1)
        sharing = int(getattr(config, "num_key_value_heads", None) or heads)
        d_head = int(getattr(config, "head_dim", None) or spec.d_model // heads)
        stored, whole = 2 * sharing * d_head, 2 * heads * d_head
        in_step = whole if sharing == heads else whole + stored
        return cls(stored, in_step, 3 * heads if config._attn_implementation == "eager" else 0)


def _weight_bytes(spec: ModelSpec, projection: DownProjection, bfloat16_copies: bool) -> int:
    weight = projection.weight
    total = weight.nbytes + (4 * weight.numel() if weight.itemsize == 2 else 0)
    if bfloat16_copies:
        above = [n for n, b in spec.block_of.items() if b is None or b >= projection.layer]
        total += sum(2 * spec.parameters[name].numel() for name in above)
    return total
