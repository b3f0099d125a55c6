"""What a Session measures to tell whether the model is still well, and the results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rome_fast.errors import InvalidArgumentError
from rome_fast.hparams import is_number

REACTIONS = ("warn", "stop", "rollback", "consolidate")
# Edits before the first check: of so many one may be lost.
FIRST = 10


@dataclass(frozen=True)
class HealthCheck:
    """What a Session checks, how often, and what it does when the model is unwell.

    Attributes:
        every: edits between two checks, at most: the first comes after 10, and then one whenever
            there are twice as many; 0: only when ``Session.health()`` is called.
        texts: held texts, for perplexity and KL; None: sampled from the unedited model.
        prompts: held prompts about other subjects, whose next token should stay; may be empty.
            None: those of the edits themselves, about other subjects.
        sample: how many of the earlier edits are asked again.
        max_perplexity: of the texts, relative to the unedited model.
        min_retention: share of the sampled edits that the model still says.
        max_spread: of the movement of the matrix' output on ordinary text, as a share of that
            output, by edits of the weight that are solved as one. It is known without a forward:
            beyond it a check is made at once.
        min_neighbourhood: share of the prompts with the unedited model's answer.
        horizon: a check foretells how the model will be after so many more edits, or twice as many
            where there are fewer; 0: it does not.
        on_unhealthy: "warn"; "stop": raise UnhealthyError; "rollback": go back to the edits
            of the last healthy check, then raise it; "consolidate": ``Session.consolidate`` first,
            and only where that does not help, as "rollback". Of what is only foretold nothing is
            undone.
    """

    every: int = 50
    texts: Sequence[str] | None = None
    prompts: Sequence[str] | None = None
    sample: int = 32
    max_perplexity: float = 1.25
    max_spread: float = 0.25
    min_retention: float = 0.9
    min_neighbourhood: float = 0.7
    horizon: int = 50
    on_unhealthy: str = "rollback"

    def __post_init__(self) -> None:
        for name in ("every", "sample", "horizon"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise InvalidArgumentError(
                    f"health.{name} must be a whole number of 0 or more, got {value!r}"
                )
        limits = {
            "max_perplexity": math.inf,
            "max_spread": math.inf,
            "min_retention": 1,
            "min_neighbourhood": 1,
        }
        for name, most in limits.items():
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= most:
                raise InvalidArgumentError(
                    f"health.{name} must be a number between 0 and {most}, got {value!r}"
                )
        for name in ("texts", "prompts"):
            if getattr(self, name) is not None:
                _check_strings(name, getattr(self, name))
        if self.on_unhealthy not in REACTIONS:
            raise InvalidArgumentError(
                f"health.on_unhealthy must be one of {REACTIONS}, got {self.on_unhealthy!r}"
            )

    def gap(self, last_edit: int) -> int:
        """How many edits after the check at ``last_edit`` the next one is due."""
        return min(self.every, max(FIRST, last_edit))

    def problems(self, figures: Health | Outlook) -> tuple[str, ...]:
        """What is beyond its limit, in words."""
        found = []
        if not figures.perplexity <= self.max_perplexity:
            found.append(
                f"perplexity {figures.perplexity:.3f} times the unedited model's (limit "
                f"{self.max_perplexity})"
            )
        if figures.spread is not None and figures.spread > self.max_spread:
            found.append(
                f"the matrix' output on ordinary text moved by {figures.spread:.0%} of itself "
                f"(limit {self.max_spread:.0%})"
            )
        for name, what in (
            ("retention", "of the edits still said"),
            ("neighbourhood", "of prompts about other subjects unchanged"),
        ):
            share, limit = getattr(figures, name), getattr(self, f"min_{name}")
            if share is not None and share < limit:
                found.append(f"{share:.1%} {what} (limit {limit:.1%})")
        return tuple(found)


def _check_strings(name: str, value: object) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        said = f"not one {value[:60]!r}" if isinstance(value, str) else f"got {value!r:.80}"
        raise InvalidArgumentError(f"health.{name} must be a list of strings, {said}")
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise InvalidArgumentError(
                f"health.{name}[{index}] must be a string, got {item!r:.80}: leave it out"
            )


@dataclass(frozen=True)
class Outlook:
    """What is foretold for ``n_edits`` edits, under the names of Health.

    Attributes:
        problems: what will be beyond its limit, in words.
    """

    n_edits: int
    perplexity: float
    retention: float | None
    neighbourhood: float | None
    spread: float | None
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"after {self.n_edits} edits: {'; '.join(self.problems) or 'healthy'}"


@dataclass(frozen=True)
class Health:
    """The result of one health check.

    Attributes:
        last_edit: number of the latest edit that was made, taken out or not.
        n_edits: edits that hold.
        perplexity: of the held texts, relative to the unedited model; infinite, and so is ``kl``,
            where the model's logits are not finite.
        kl: KL(now || unedited) of the next token on them, nats.
        retention: share of the sampled edits whose target is still the greedy answer; None without
            edits.
        neighbourhood: share of the held prompts with an unchanged next token; None without prompts.
        update_norms: Frobenius norm of the sum of all updates relative to the weight's, by weight.
        ranks: upper bound of the rank of that sum, by weight.
        spread: how far the matrix' output on ordinary text has moved, as a share of it, by edits
            that are solved as one; None without such edits.
        problems: what is beyond its limit, in words; empty when healthy.
        outlook: what is foretold, if edits go on as so far; None without edits, or unasked.
    """

    last_edit: int
    n_edits: int
    perplexity: float
    kl: float
    retention: float | None
    neighbourhood: float | None
    update_norms: dict[str, float]
    ranks: dict[str, int]
    spread: float | None = None
    problems: tuple[str, ...] = field(default=())
    outlook: Outlook | None = None

    @property
    def healthy(self) -> bool:
        """Whether nothing is beyond its limit."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Health:
        """The Health that gave ``to_json``, read back from a file."""
        told = fields.get("outlook")
        outlook = told and Outlook(**{**told, "problems": tuple(told["problems"])})
        return cls(**{**fields, "problems": tuple(fields["problems"]), "outlook": outlook})

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
                else [f"{self.neighbourhood:.1%} of other subjects unchanged"]
            ),
            *([] if self.spread is None else [f"output on text moved by {self.spread:.1%}"]),
            norm,
        ]
        state = "healthy" if self.healthy else "UNHEALTHY: " + "; ".join(self.problems)
        if self.healthy and self.outlook is not None and self.outlook.problems:
            state += f", but {self.outlook}"
        return f"{', '.join(parts)}: {state}"
