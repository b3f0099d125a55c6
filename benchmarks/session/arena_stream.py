"""The order in which the arena's facts are edited, and those that are edited twice."""

from __future__ import annotations

import random
from typing import NamedTuple


class Step(NamedTuple):
    """One edit of a stream.

    Attributes:
        fact: its place among the records.
        value: the place of the record whose value it is given.
    """

    fact: int
    value: int


def stream(n: int, searched: int, order: int = 0, again: int = 0) -> list[Step]:
    """The first ``n`` facts, one edit each, in their own order or in a shuffled one.

    Args:
        searched: how many values there are; further facts are given them in turn.
        order: 0 for the facts' own, or the seed of another.
        again: the first so many facts are edited to something else at an earlier step.
    """
    steps = [Step(i, (i + 1) % searched) for i in range(again)]
    steps += [Step(i, i % searched) for i in range(n)]
    if not order:
        return steps
    random.Random(order).shuffle(steps)
    places: dict[int, list[int]] = {}
    for place, step in enumerate(steps):
        places.setdefault(step.fact, []).append(place)
    for fact, found in places.items():
        steps[found[-1]] = Step(fact, fact % searched)
        if len(found) > 1:
            steps[found[0]] = Step(fact, (fact + 1) % searched)
    return steps


def standing(steps: list[Step]) -> list[Step]:
    """What a Session has in the model at the end: of a fact, the last edit only."""
    last = {step.fact: place for place, step in enumerate(steps)}
    return [step for place, step in enumerate(steps) if last[step.fact] == place]
