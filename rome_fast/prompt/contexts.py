"""Context templates: short texts that precede the prompt.

The key is a mean over them, so that the edit holds in any context. They are the same for all
models, or sampled from the model itself, as the reference does: with a seed, for one call, and
returned in its result; nothing is kept between models.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import InvalidArgumentError, NonFiniteError
from rome_fast.model.nonfinite import where_not_finite
from rome_fast.model.spec import embedding_rows, input_device, max_positions
from rome_fast.prompt.ids import decode
from rome_fast.prompt.logits import logits_at
from rome_fast.prompt.request import SLOT

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.hparams import RomeHparams


# Broken off and without much sense, as what models are sampled from their start mostly is: on
# SmolLM2 edits behind them are as good as behind sampled texts, and better than behind whole
# sentences (docs/performance.md).
WRITTEN_CONTEXTS = (
    SLOT,
    f", and so on. {SLOT}",
    f"a retired teacher. {SLOT}",
)

# The prompt put as a question: v* that is searched behind texts alone is not said to one
# (docs/decisions.md, "In which forms an edit is asked").
QUESTION_CONTEXTS = ("Q: {}\nA:", "Answer the following.\n{}\nAnswer:")


def contexts_for(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, hparams: RomeHparams
) -> list[str]:
    """The contexts that the hyper-parameters ask for: written ones, or sampled ones."""
    lengths = hparams.context_template_length_params
    if lengths is None:
        return list(WRITTEN_CONTEXTS)
    return sample_context_templates(model, tok, lengths, seed=hparams.seed)


def sample_context_templates(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    length_params: Sequence[Sequence[int]],
    *,
    seed: int = 0,
) -> list[str]:
    """``["{}"]`` and, for each ``[length, count]``, ``count`` texts as ``"<text>. {}"``.

    Texts are drawn with top-k 5 from the model's own start, ``length`` counting the start token
    (kmeng01/rome, ``rome_main.get_context_templates``; there unseeded). Braces are dropped from
    the texts: they would read as slots.
    """
    generator = torch.Generator().manual_seed(seed)
    templates, limit = [SLOT], max_positions(model)
    for length, count in length_params:
        if limit is not None and length > limit:
            raise InvalidArgumentError(
                f"hparams.context_template_length_params asks for {length} tokens, but the model "
                f"takes {limit}"
            )
        ids = sample_ids(model, tok, count, length - 1, generator=generator, top_k=5)
        for row in ids.tolist():
            text = " ".join(decode(tok, row).replace("{", " ").replace("}", " ").split())
            if text:
                templates.append(f"{text}. {SLOT}")
    return templates


def check_context_templates(templates: Sequence[str]) -> list[str]:
    """Check the caller's own templates: each needs exactly one ``{}`` for the prompt."""
    if isinstance(templates, str) or not templates:
        raise InvalidArgumentError(
            f"context_templates must be a non-empty list of strings, got {templates!r}"
        )
    for template in templates:
        if not isinstance(template, str) or template.count(SLOT) != 1:
            raise InvalidArgumentError(
                f"context_templates: each needs exactly one '{{}}' for the prompt, got {template!r}"
            )
    return list(templates)


@torch.no_grad()
def sample_ids(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    n_rows: int,
    n_tokens: int,
    *,
    generator: torch.Generator,
    top_k: int | None = None,
) -> Tensor:
    """Sample from the model, int64 [n_rows, n_tokens] on the CPU, without the start token.

    Special tokens are never drawn, so no row ends early. The generator lives on the CPU: equal
    seeds draw alike on every device that computes the same logits.
    """
    device = input_device(model)
    special = [i for i in tok.all_special_ids if i < embedding_rows(model)]
    first = torch.full((n_rows, 1), start_token(tok))
    last = first.to(device)
    drawn: list[Tensor] = []
    cache = None
    for position in range(n_tokens):
        out = model(
            input_ids=last,
            attention_mask=torch.ones(n_rows, position + 1, device=device, dtype=torch.int64),
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        logits = out.logits[:, -1].float().cpu()
        if not torch.isfinite(logits).all():
            so_far = torch.cat([first, *drawn], dim=1)
            again = partial(logits_at, model, so_far.tolist(), [(0, 0)])
            raise NonFiniteError(
                "the model's logits are NaN or infinite while sampling from it: "
                f"{where_not_finite(model, again)}"
            )
        logits[:, special] = float("-inf")
        if top_k is not None:
            floor = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
            logits[logits < floor] = float("-inf")
        token = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        drawn.append(token)
        last = token.to(device)
    return torch.cat(drawn, dim=1)


def start_token(tok: PreTrainedTokenizerBase) -> int:
    """The id that a text begins with: BOS, else EOS (GPT-2's ``<|endoftext|>``), else 0."""
    for name in (tok.bos_token_id, tok.eos_token_id):
        if name is not None:
            return int(name)
    return 0
