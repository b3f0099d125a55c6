"""What a Session was opened with: checked at once, and kept in its journal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rome_fast.errors import InvalidArgumentError
from rome_fast.hparams import RomeHparams, is_number
from rome_fast.session.guard import Guard
from rome_fast.session.health import HealthCheck

# How edits of the weight are solved: all as one, or each where those before it are retained.
SOLVES = ("joint", "sequential")


def check_options(options: Mapping[str, Any]) -> None:
    """Check the fields of Settings that a Session is given. Raises InvalidArgumentError."""
    retain, anchor, lam = options["retain"], options["anchor"], options["lam"]
    if options["solve"] not in SOLVES:
        raise InvalidArgumentError(f"solve must be one of {SOLVES}, got {options['solve']!r}")
    if lam is not None and (not is_number(lam) or not 0 < lam < math.inf):
        raise InvalidArgumentError(f"lam must be a finite number above 0, or None, got {lam!r}")
    if not is_number(retain) or not 0 <= retain < math.inf:
        raise InvalidArgumentError(f"retain must be a finite number >= 0, got {retain!r}")
    if type(anchor) is not int or anchor < 0:
        raise InvalidArgumentError(f"anchor must be a whole number of 0 or more, got {anchor!r}")
    for name, kind in (("guard", Guard), ("health", HealthCheck)):
        if not isinstance(options[name], kind):
            raise InvalidArgumentError(
                f"{name} must be a {kind.__name__}, got {type(options[name]).__name__}"
            )


@dataclass(frozen=True)
class Settings:
    """The options of ``Session``, under the same names; ``hparams`` as they are used."""

    hparams: RomeHparams
    context_templates: tuple[str, ...]
    backend: str
    form: str
    solve: str
    lam: float | None
    retain: float
    anchor: int
    guard: Guard
    health: HealthCheck

    def to_json(self) -> dict[str, Any]:
        """Plain dicts."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Settings:
        """The Settings that gave ``to_json``, read back from a file."""
        return cls(
            **{
                # Of journals up to 0.3.
                **{"form": "weight", "solve": "sequential", "lam": None},
                **fields,
                "hparams": RomeHparams(**fields["hparams"]),
                "context_templates": tuple(fields["context_templates"]),
                "guard": Guard(**fields["guard"]),
                "health": HealthCheck(**fields["health"]),
            }
        )
