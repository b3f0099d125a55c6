"""The forward pass used in training: GPT-2's, with rules on who may read the subject.

Four rules are switched on at random for a part of the sentences; the finished model is an ordinary
GPT-2 and is only ever measured without them.

hide    nothing after the subject attends to the subject's tokens before its last one
late    nothing after the subject attends to its last token at layers up to the fact layer
swap    the fact layer's MLP output at the subject's last token is replaced by another subject's,
        and the sentence names that other subject's object
noise   Gaussian noise is added to the same vector

After the first part of training (``sharpen``) a swap may take over only a share of the vector, and
a contrastive loss makes the fact layer's MLP keys of one subject alike wherever it is named and
unlike those of other subjects.
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
    contrast: float = 0.2
    temperature: float = 0.1


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
    source = torch.tensor([s.donor if s.donor >= 0 else i for i, s in enumerate(batch.spans)])
    share = torch.tensor([[span.share] for span in batch.spans])
    own = flat[place].float()
    value = own + share * (own[source] - own)
    scale = value.detach().norm(dim=-1, keepdim=True) * (rules.noise / dim**0.5)
    chosen = torch.rand(len(place), 1, generator=generator) < rules.noise_share
    noise = torch.randn(value.shape, generator=generator) * scale * chosen
    return flat.index_put((place,), (value + noise).to(flat.dtype)).view_as(mlp_out)


def key_contrast(keys: torch.Tensor, batch: Batch, temperature: float) -> torch.Tensor:
    """InfoNCE loss over the subjects of a batch; ``keys`` is [rows, tokens, d_key]."""
    width = keys.shape[1]
    place = torch.tensor([span.row * width + span.last for span in batch.spans])
    units = F.normalize(keys.flatten(0, 1)[place].float(), dim=-1)
    numbers: dict[str, int] = {}
    who = torch.tensor([numbers.setdefault(s.subject, len(numbers)) for s in batch.spans])
    itself = torch.eye(len(place), dtype=torch.bool)
    same = (who[:, None] == who) & ~itself
    scores = (units @ units.T / temperature).masked_fill(itself, -torch.inf)
    log_share = scores.log_softmax(-1).masked_fill(~same, 0.0)
    return -log_share.sum() / same.sum().clamp(min=1)


def training_loss(
    model: GPT2LMHeadModel, batch: Batch, rules: Rules, generator: torch.Generator, sharpen: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted next-token loss, and the plain mean loss on the objects (for the log)."""
    ids = torch.from_numpy(batch.ids)
    weights = torch.from_numpy(batch.weights)[:, 1:].reshape(-1)
    lower, upper = attention_masks(batch, rules, generator)
    core: Any = model.transformer
    hidden = core.wte(ids) + core.wpe.weight[: ids.shape[1]]
    contrast = torch.zeros(())
    for number, block in enumerate(core.h):
        hidden = hidden + attend(block, hidden, lower if number <= rules.fact_layer else upper)
        key = block.mlp.act(block.mlp.c_fc(block.ln_2(hidden)))
        mlp_out = block.mlp.c_proj(key)
        if number == rules.fact_layer:
            mlp_out = swap_and_noise(mlp_out, batch, rules, generator)
            if sharpen:
                contrast = rules.contrast * key_contrast(key, batch, rules.temperature)
        hidden = hidden + mlp_out
    logits = model.lm_head(core.ln_f(hidden[:, :-1])).flatten(0, 1)
    losses = F.cross_entropy(logits.float(), ids[:, 1:].reshape(-1), reduction="none")
    on_target = losses[weights > 1.0].mean().detach()
    return (losses * weights).sum() / weights.sum() + contrast, on_target


def attend(block: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The attention of one block on ``hidden`` [rows, tokens, d] under a boolean mask."""
    qkv = block.attn.c_attn(block.ln_1(hidden))
    heads = block.attn.num_heads
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
    )
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return block.attn.c_proj(mixed.transpose(1, 2).flatten(2))
