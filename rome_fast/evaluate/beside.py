"""Two models, or two evaluations, side by side: what differs, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rome_fast.errors import InvalidArgumentError
from rome_fast.evaluate.drift import Drift
from rome_fast.evaluate.generation import generate
from rome_fast.evaluate.metrics import mean_metric
from rome_fast.evaluate.result import EvaluationData, Metric

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


@dataclass(frozen=True)
class Difference:
    """One metric of two evaluations, on the cases that both have.

    Attributes:
        difference: mean of second minus first over the pairs, with its 95 % interval.
    """

    name: str
    first: float
    second: float
    difference: Metric


def compare(
    first: EvaluationData, second: EvaluationData, stage: str = "after"
) -> list[Difference]:
    """Every metric that both have, paired by case: the same records, edited in two ways.

    Raises:
        InvalidArgumentError: no case of the one is in the other.
    """
    cases = [
        {(case.case_id, case.request): case.stages[stage].values for case in of.cases
         if stage in case.stages}
        for of in (first, second)
    ]  # fmt: skip
    shared = [key for key in cases[0] if key in cases[1]]
    if not shared:
        raise InvalidArgumentError(
            "no case of the one evaluation is in the other: compare two of the same records"
        )
    names = dict.fromkeys(name for key in shared for name in cases[0][key])
    found = []
    for name in names:
        pairs = [
            (cases[0][key][name], cases[1][key][name])
            for key in shared
            if name in cases[0][key] and name in cases[1][key]
        ]
        if pairs:
            a, b = np.asarray(pairs, dtype=np.float64).T
            found.append(Difference(name, a.mean(), b.mean(), mean_metric((b - a).tolist())))
    return found
