"""The prompts of edits about other subjects: what an edit should leave alone, of its own kind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rome_fast.types import EditRequest


def about_others(requests: Sequence[EditRequest], n: int, drawn: random.Random) -> list[str]:
    """Prompts of ``n`` of the requests, in turn if there are fewer, each about another subject."""
    edited = {name for request in requests for name in request.names}
    names = [name for name in _names() if name not in edited]
    rounds = [drawn.sample(requests, len(requests)) for _ in range(-(-n // len(requests)))]
    chosen = [request for part in rounds for request in part][:n]
    return [r.prompt.replace("{}", drawn.choice(names)).rstrip(" ") for r in chosen]


@cache
def _names() -> tuple[str, ...]:
    """Subjects of many kinds."""
    return tuple(Path(__file__).with_name("names.txt").read_text("utf-8").splitlines())
