"""Subjects that open their text: where their key is their own, and where it is any first token's.

Attention that looks at nothing rests on the first token of a text (Xiao et al. 2024, "attention
sinks"): from some low layer on its key hardly tells which token it is. Most tokenizers put BOS
there; with the others it is the subject, and an edit of that key fails, or changes what every text
begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rome_fast.model.activations import read_activations
from rome_fast.prompt.request import SLOT
from rome_fast.value.batch import EditBatch
from rome_fast.value.first_pass import FirstPass
from rome_fast.value.key import Keys, mean_keys

if TYPE_CHECKING:
    from rome_fast.model.spec import ModelSpec
    from rome_fast.prompt.encode import TokenizedEdit

# Cosine of the bare prompt's key and its mean behind other texts: of a first token it is above this
# where the key is still its own, and near 0 where it is the sink's (tests/value/test_sink.py).
MIN_AGREEMENT = 0.3


def opens_its_text(edit: TokenizedEdit) -> bool:
    """Whether the bare prompt's lookup is at its very first token."""
    return int(edit.lookup_idx[edit.prompt_row]) == 0


def deepest_own_key(spec: ModelSpec, edits: Sequence[TokenizedEdit], layer: int) -> int:
    """The deepest layer, from ``layer`` downwards, where all the edits' keys are their own.

    ``layer`` itself where not all of them open their texts, or where there is no such layer.
    """
    if not edits or not all(map(opens_its_text, edits)):
        return layer
    batches = [EditBatch.of([edit]) for edit in edits]
    for candidate in range(layer, -1, -1):
        if candidate in spec.dense_layers and all(
            _agreement_in(spec, batch, candidate) >= MIN_AGREEMENT for batch in batches
        ):
            return candidate
    return layer


def more_of_the_prompt(templates: Sequence[str]) -> list[str]:
    """Half of the contexts, and the bare prompt half as often as those.

    A sink's key is another one than in contexts, also where it is the token's own: one row of 21 is
    too few for it.
    """
    others = [template for template in templates if template != SLOT][::2]
    return [SLOT] * max(1, len(others) // 2) + others


def agreement(edit: TokenizedEdit, keys: Keys) -> float:
    """Cosine of the bare prompt's key and the mean of the others; 1 where there is no other.

    The mean key holds the prompt's own, and a sink's key is up to 20 times as long as any other.
    """
    n = edit.n_contexts
    others = n * keys.key - keys.prompt_key if edit.prompt_row < n else keys.key
    if n == 1 and edit.prompt_row < n:
        return 1.0
    return float(torch.cosine_similarity(others, keys.prompt_key, dim=0))


def moved(default: int, layer: int) -> str:
    """What an edit says that ``deepest_own_key`` has moved."""
    return (
        f"the subject opens the prompt, where the key of layer {default} is that of any first "
        f"token: edited in layer {layer}, where it is its own"
    )


def findings(edit: TokenizedEdit, keys: Keys) -> list[str]:
    """A remark for the user where the bare prompt's key is the sink's."""
    if not opens_its_text(edit) or (found := agreement(edit, keys)) >= MIN_AGREEMENT:
        return []
    said = (
        f"the subject's token {edit.subject_token!r} is the first of the text, where its key is "
        f"that of any first token (agreement {found:.2f} with its key in contexts): put "
        "words before it ('The city of ...'), or edit() it alone without hparams, in another layer"
    )
    return [said]


def _agreement_in(spec: ModelSpec, batch: EditBatch, layer: int) -> float:
    """``agreement`` of the one edit of a batch in some layer."""
    projection, [edit] = spec.down_projection(layer), batch.edits
    inputs, outputs = read_activations(
        spec.model, projection, batch.input_ids, batch.attention_mask
    )
    at = torch.arange(batch.n_rows), batch.lookup_idx
    [keys] = mean_keys(projection, batch, FirstPass(inputs[at], outputs[at]))
    return agreement(edit, keys)
