"""Is the model still well? Held texts, held prompts, and the edits that it should still know."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.contexts import sample_ids
from rome_fast.errors import InvalidArgumentError
from rome_fast.evaluate.drift import Drift
from rome_fast.models import max_positions
from rome_fast.readback import logits_at, read_targets
from rome_fast.tokens import continuations, decode, text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.editlog import EditLog
    from rome_fast.types import EditRequest
    from rome_fast.undo import WeightHistory

REACTIONS = ("warn", "stop", "rollback")
_N_TEXTS, _TEXT_TOKENS = 16, 32
# Prompts of one forward.
_AT_ONCE = 64


@dataclass(frozen=True)
class HealthCheck:
    """What a Session looks at, how often, and what it does when the model is unwell.

    Attributes:
        every: edits between two checks; 0: only when ``Session.health()`` is called.
        texts: held texts, for perplexity and KL; None: sampled from the unedited model.
        prompts: held prompts about other subjects, whose next token should stay; may be empty.
        sample: how many of the earlier edits are asked again.
        max_perplexity: of the texts, relative to the unedited model.
        min_retention: share of the sampled edits that the model still says.
        min_neighbourhood: share of the prompts with the unedited model's answer.
        on_unhealthy: "warn"; "stop": raise UnhealthyError; "rollback": undo the edits since the
            last healthy check, then raise it.
    """

    every: int = 50
    texts: Sequence[str] | None = None
    prompts: Sequence[str] = ()
    sample: int = 32
    max_perplexity: float = 1.25
    min_retention: float = 0.9
    min_neighbourhood: float = 0.8
    on_unhealthy: str = "warn"

    def __post_init__(self) -> None:
        for name in ("every", "sample"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise InvalidArgumentError(
                    f"health.{name} must be a whole number of 0 or more, got {value!r}"
                )
        limits = {"max_perplexity": math.inf, "min_retention": 1, "min_neighbourhood": 1}
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise InvalidArgumentError(
                    f"health.{name} must be between 0 and {most}, got {getattr(self, name)!r}"
                )
        for name in ("texts", "prompts"):
            if isinstance(getattr(self, name), str):
                raise InvalidArgumentError(f"health.{name} must be a list of strings, not one")
        if self.on_unhealthy not in REACTIONS:
            raise InvalidArgumentError(
                f"health.on_unhealthy must be one of {REACTIONS}, got {self.on_unhealthy!r}"
            )


@dataclass(frozen=True)
class Health:
    """One look at the model.

    Attributes:
        last_edit: number of the latest edit that was made, taken out or not.
        n_edits: edits that hold.
        perplexity: of the held texts, relative to the unedited model.
        kl: KL(now || unedited) of the next token on them, nats.
        retention: share of the sampled edits whose target is still the greedy answer; None without
            edits.
        neighbourhood: share of the held prompts with an unchanged next token; None without prompts.
        update_norms: Frobenius norm of the sum of all updates relative to the weight's, by weight.
        ranks: of that sum, by weight, at most.
        problems: what is beyond its limit, in words; empty when healthy.
    """

    last_edit: int
    n_edits: int
    perplexity: float
    kl: float
    retention: float | None
    neighbourhood: float | None
    update_norms: dict[str, float]
    ranks: dict[str, int]
    problems: tuple[str, ...] = field(default=())

    @property
    def healthy(self) -> bool:
        """Whether nothing is beyond its limit."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Health:
        """What ``to_json`` gave, by way of a file."""
        return cls(**{**fields, "problems": tuple(fields["problems"])})

    def __str__(self) -> str:
        norm = "; ".join(
            f"{name} moved by {x:.2f} of its norm" for name, x in self.update_norms.items()
        )
        parts = [
            f"{self.n_edits} edits",
            f"perplexity x {self.perplexity:.3f}",
            *([] if self.retention is None else [f"{self.retention:.1%} of edits retained"]),
            *(
                []
                if self.neighbourhood is None
                else [f"{self.neighbourhood:.1%} of prompts unchanged"]
            ),
            norm,
        ]
        state = "healthy" if self.healthy else "UNHEALTHY: " + "; ".join(self.problems)
        return f"{', '.join(parts)}: {state}"


class Baseline:
    """What the unedited model makes of the held texts and prompts. Made while it is unedited."""

    def __init__(
        self, check: HealthCheck, model: PreTrainedModel, tok: PreTrainedTokenizerBase, seed: int
    ) -> None:
        self._check, self._model, self._tok = check, model, tok
        texts = _sampled_texts(model, tok, seed) if check.texts is None else check.texts
        self._drift = Drift.baseline(model, tok, texts)
        self._perplexity = self._drift.measure(model)["perplexity"]
        self._prompts = [text_ids(tok, prompt) for prompt in check.prompts]
        self._answers = self._next_tokens()

    @torch.no_grad()
    def look(self, log: EditLog, history: WeightHistory) -> Health:
        """Look at the model as it is now, with the edits that hold in it."""
        requests = [edit.request for edit in log.holding()]
        name, now = f"{history.projection.name}.weight", history.weight
        drift, wide = self._drift.measure(self._model), history.base.double()
        same = [a == b for a, b in zip(self._answers, self._next_tokens(), strict=True)]
        health = Health(
            last_edit=log.next_id - 1,
            n_edits=len(requests),
            perplexity=drift["perplexity"] / self._perplexity,
            kl=drift["kl"],
            retention=self._retention(requests),
            neighbourhood=statistics.fmean(same) if same else None,
            update_norms={name: float(torch.dist(now.double(), wide) / wide.norm())},
            ranks={name: min(len(requests), *now.shape)},
        )
        return Health(**{**asdict(health), "problems": tuple(self._problems(health))})

    def _problems(self, health: Health) -> list[str]:
        check = self._check
        found = []
        if not health.perplexity <= check.max_perplexity:
            found.append(
                f"perplexity is {health.perplexity:.3f} times the unedited model's (limit "
                f"{check.max_perplexity})"
            )
        for name in ("retention", "neighbourhood"):
            share, limit = getattr(health, name), getattr(check, f"min_{name}")
            if share is not None and share < limit:
                found.append(f"{name} is {share:.1%} (limit {limit:.1%})")
        return found

    def _retention(self, requests: Sequence[EditRequest]) -> float | None:
        # Other ones at every check, but the same at each repetition of it.
        chosen = random.Random(len(requests)).sample(
            requests, min(self._check.sample, len(requests))
        )
        if not chosen:
            return None
        held = []
        for start in range(0, len(chosen), _AT_ONCE):
            part = chosen[start : start + _AT_ONCE]
            asked = continuations(self._tok, [(r.text, r.target, r.chat) for r in part])
            prompts, targets = [a.prompt_ids for a in asked], [a.target_ids for a in asked]
            held += [r.rank == 1 for r in read_targets(self._model, self._tok, prompts, targets)]
        return statistics.fmean(held)

    @torch.no_grad()
    def _next_tokens(self) -> list[int]:
        """The likeliest token after each held prompt."""
        found: list[int] = []
        for start in range(0, len(self._prompts), _AT_ONCE):
            part = self._prompts[start : start + _AT_ONCE]
            places = [(i, len(prompt) - 1) for i, prompt in enumerate(part)]
            found += logits_at(self._model, part, places).argmax(1).tolist()
        return found


def _sampled_texts(model: PreTrainedModel, tok: PreTrainedTokenizerBase, seed: int) -> list[str]:
    limit = max_positions(model)
    n_tokens = _TEXT_TOKENS if limit is None else min(_TEXT_TOKENS, limit - 1)
    generator = torch.Generator().manual_seed(seed)
    ids = sample_ids(model, tok, _N_TEXTS, n_tokens, generator=generator)
    return [decode(tok, row) for row in ids.tolist()]
