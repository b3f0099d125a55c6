"""Two models side by side: what they answer otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rome_fast.evaluate.drift import Drift
from rome_fast.evaluate.generation import generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Beside:
    """Greedy answers of two models to the same prompts.

    Attributes:
        perplexity: of the prompts, of the second model over that of the first.
        kl: mean divergence of the first model's next token from the second's, nats.
    """

    prompts: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    perplexity: float
    kl: float

    @property
    def changed(self) -> tuple[int, ...]:
        """The places of the prompts that are answered otherwise."""
        pairs = zip(self.before, self.after, strict=True)
        return tuple(i for i, (a, b) in enumerate(pairs) if a != b)


def answers_beside(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    n_tokens: int,
    edited: Callable[[], PreTrainedModel],
) -> Beside:
    """Ask a model, then the one that ``edited`` makes of it or loads, the same prompts.

    Raises:
        InvalidArgumentError: no prompt has two tokens.
    """
    drift = Drift.baseline(model, tok, prompts)
    first = drift.measure(model)["perplexity"]
    before = generate(model, tok, prompts, n_tokens)
    other = edited()
    found = drift.measure(other)
    after = generate(other, tok, prompts, n_tokens)
    return Beside(
        tuple(prompts), tuple(before), tuple(after), found["perplexity"] / first, found["kl"]
    )
