"""A model like those of remote code: not a class of transformers, and with its own names.

The layout is InternLM2's: one matrix for queries, keys and values of grouped heads, `w1`, `w3`,
`w2` for the MLP, `tok_embeddings` and `output`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class RemoteConfig(PretrainedConfig):
    model_type = "remote_internlm"

    def __init__(self, vocab_size=60, hidden_size=32, num_hidden_layers=3, **more):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size, self.n_heads, self.n_groups = 48, 4, 2
        self.max_position_embeddings = 128
        super().__init__(**{"tie_word_embeddings": False, **more})


class RemoteNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class Attention(nn.Module):
    def __init__(self, config: RemoteConfig, layer: int):
        super().__init__()
        self.layer, self.heads, self.groups = layer, config.n_heads, config.n_groups
        width = config.hidden_size
        self.d_head = width // self.heads
        self.wqkv = nn.Linear(width, (self.heads + 2 * self.groups) * self.d_head, bias=False)
        self.wo = nn.Linear(width, width, bias=False)

    def forward(self, x, positions, mask, cache):
        n, t, _ = x.shape
        per_group = self.heads // self.groups + 2
        qkv = self.wqkv(x).view(n, t, self.groups, per_group, self.d_head)
        queries = qkv[..., :-2, :].reshape(n, t, self.heads, self.d_head).transpose(1, 2)
        keys, values = (qkv[..., i, :].transpose(1, 2) for i in (-2, -1))
        queries, keys = (_rotated(part, positions) for part in (queries, keys))
        if cache is not None:
            keys, values = cache.update(keys, values, self.layer)
        keys, values = (
            part.repeat_interleave(self.heads // self.groups, 1) for part in (keys, values)
        )
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.wo(out.transpose(1, 2).reshape(n, t, -1))


def _rotated(x, positions):
    half = x.shape[-1] // 2
    turns = 10_000 ** -(torch.arange(half, device=x.device) / half)
    angles = positions[:, None, :, None] * turns
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    first, second = x.split(half, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class FeedForward(nn.Module):
    def __init__(self, config: RemoteConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.w1, self.w3 = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.w2 = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config: RemoteConfig, layer: int):
        super().__init__()
        self.attention = Attention(config, layer)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RemoteNorm(config.hidden_size)
        self.ffn_norm = RemoteNorm(config.hidden_size)

    def forward(self, x, positions, mask, cache):
        x = x + self.attention(self.attention_norm(x), positions, mask, cache)
        return (x + self.feed_forward(self.ffn_norm(x)),)


class Decoder(nn.Module):
    def __init__(self, config: RemoteConfig):
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RemoteNorm(config.hidden_size)


class RemoteForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = RemoteConfig

    def __init__(self, config: RemoteConfig):
        super().__init__(config)
        self.model = Decoder(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.tok_embeddings

    def get_output_embeddings(self):
        return self.output

    def forward(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=False,
        **unused,
    ):
        t = input_ids.shape[1]
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        n_before = 0 if past_key_values is None else past_key_values.get_seq_length()
        at = torch.arange(n_before, n_before + t, device=input_ids.device)
        positions = at.expand(len(input_ids), t) if position_ids is None else position_ids
        mask = (torch.arange(n_before + t, device=at.device) <= at[:, None])[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None].bool()
        # Else a row of padding would attend to nothing, and its softmax be NaN.
        mask = mask | torch.eye(n_before + t, device=at.device, dtype=torch.bool)[None, None, -t:]
        x = self.model.tok_embeddings(input_ids)
        for block in self.model.layers:
            (x,) = block(x, positions, mask, past_key_values)
        logits = self.output(self.model.norm(x))
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)


def internlm_like(vocabulary: int) -> RemoteForCausalLM:
    """3 layers, width 32; seeded."""
    torch.manual_seed(0)
    return RemoteForCausalLM(RemoteConfig(vocab_size=vocabulary)).eval()
