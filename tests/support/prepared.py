"""Batches of random tokens, and miniature models that have run their first pass over them."""

from __future__ import annotations

import torch
from families import VOCABULARY, tiny_family

from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.encode import TokenizedEdit
from rome_fast.value.batch import EditBatch
from rome_fast.value.buckets import EXACT, Buckets
from rome_fast.value.first_pass import run_first_pass


def random_edit(seed: int, lookups: list[int], n_target: int) -> TokenizedEdit:
    """Rows of random tokens with these lookups; the last is the KL prompt's."""
    generator = torch.Generator().manual_seed(seed)
    lookup_idx = torch.tensor(lookups)
    more = torch.randint(1, 4, lookup_idx.shape, generator=generator)
    lengths = lookup_idx + more + n_target
    input_ids = torch.randint(VOCABULARY, (len(lookups), int(lengths.max())), generator=generator)
    attention_mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    n_contexts = len(lookups) - 1
    return TokenizedEdit(
        input_ids=input_ids * attention_mask,
        attention_mask=attention_mask,
        lookup_idx=lookup_idx,
        target_ids=torch.randint(VOCABULARY, (n_target,), generator=generator),
        target_start=(lengths - n_target)[:n_contexts],
        n_contexts=n_contexts,
        prompt_row=0,
        subject_token="",
        target_tokens=(),
    )


def two_edits(buckets: Buckets = EXACT) -> EditBatch:
    """The subject first, in the middle and far in; one and three target tokens."""
    return EditBatch.of([random_edit(1, [0, 3, 7, 1], 1), random_edit(2, [2, 9, 2], 3)], buckets)


def prepared(family, layer, batch):
    model = tiny_family(family).requires_grad_(False)
    for parameter in model.parameters():  # freshly drawn, attention is next to uniform
        if parameter.dim() == 2:
            parameter.mul_(4)
    projection = ModelSpec.of(model).down_projection(layer)
    first = run_first_pass(ModelSpec.of(model), projection, batch)
    assert not first.obstacle
    return model, projection, first
