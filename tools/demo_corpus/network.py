"""The forward pass used in training: GPT-2's, with rules on who may read the subject.

Four rules are switched on at random for a part of the sentences; the finished model is an ordinary
GPT-2 and is only ever measured without them.

hide    nothing after the subject attends to the subject's tokens before its last one
late    nothing after the subject attends to its last token at layers up to the fact layer
swap    the fact layer's MLP output at the subject's last token is replaced by another subject's,
        and the sentence names that other subject's object
noise   Gaussian noise is added to the same vector
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GPT2LMHeadModel

from .batches import Batch


@dataclass(frozen=True)
class Rules:
    """How often each rule holds, and the layer (from 0) whose MLP is to hold the facts."""

    fact_layer: int = 2
    hide: float = 0.6
    late: float = 0.3
    noise_share: float = 0.5
    noise: float = 0.3


def attention_masks(
    batch: Batch, rules: Rules, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boolean masks [rows, 1, tokens, tokens] for layers up to the fact layer and above it."""
    rows, width = batch.ids.shape
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    upper = causal.expand(rows, 1, width, width).clone()
    lower = upper.clone()
    draws = torch.rand(len(batch.spans), 2, generator=generator).tolist()
    for span, (hide, late) in zip(batch.spans, draws, strict=True):
        if hide < rules.hide:
            upper[span.row, 0, span.last + 1 :, span.first : span.last] = False
            lower[span.row, 0, span.last + 1 :, span.first : span.last] = False
        if late < rules.late:
            lower[span.row, 0, span.last + 1 :, span.last] = False
    return lower, upper


def swap_and_noise(
    mlp_out: torch.Tensor, batch: Batch, rules: Rules, generator: torch.Generator
) -> torch.Tensor:
    """``mlp_out`` [rows, tokens, d] with swapped and noisy vectors at the subjects' last tokens."""
    if not batch.spans:
        return mlp_out
    width, dim = mlp_out.shape[1:]
    flat = mlp_out.reshape(-1, dim)
    place = torch.tensor([span.row * width + span.last for span in batch.spans])
    source = place.clone()
    for i, span in enumerate(batch.spans):
        if span.donor >= 0:
            source[i] = place[span.donor]
    value = flat[source]
    scale = value.detach().float().norm(dim=-1, keepdim=True) * (rules.noise / dim**0.5)
    chosen = torch.rand(len(place), 1, generator=generator) < rules.noise_share
    noise = torch.randn(value.shape, generator=generator) * scale * chosen
    return flat.index_put((place,), value + noise.to(value.dtype)).view_as(mlp_out)


def training_loss(
    model: GPT2LMHeadModel, batch: Batch, rules: Rules, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted next-token loss, and the plain mean loss on the objects (for the log)."""
    ids = torch.from_numpy(batch.ids)
    weights = torch.from_numpy(batch.weights)[:, 1:].reshape(-1)
    lower, upper = attention_masks(batch, rules, generator)
    core: Any = model.transformer
    hidden = core.wte(ids) + core.wpe.weight[: ids.shape[1]]
    heads = model.config.n_head
    for number, block in enumerate(core.h):
        mask = lower if number <= rules.fact_layer else upper
        qkv = block.attn.c_attn(block.ln_1(hidden))
        query, key, value = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        hidden = hidden + block.attn.c_proj(mixed.transpose(1, 2).flatten(2))
        mlp_out = block.mlp(block.ln_2(hidden))
        if number == rules.fact_layer:
            mlp_out = swap_and_noise(mlp_out, batch, rules, generator)
        hidden = hidden + mlp_out
    logits = model.lm_head(core.ln_f(hidden[:, :-1])).flatten(0, 1)
    losses = F.cross_entropy(logits.float(), ids[:, 1:].reshape(-1), reduction="none")
    on_target = weights > 1.0
    return (losses * weights).sum() / weights.sum(), losses[on_target].mean().detach()
