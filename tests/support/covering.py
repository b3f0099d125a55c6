"""Which cases of a test with many parameters are repetitions, that `make test` leaves out.

    @pytest.mark.covering               # each value of every parameter, fixtures' ones too, once
    @pytest.mark.covering("family")     # each value of ``family`` once; the others as they come
    @pytest.mark.covering("n,d", "x")   # each pair of a value of ``n`` and one of ``d``; each ``x``
    @pytest.mark.covering(n=[1, 5])     # each value of every parameter, but of ``n`` these alone

What is tested on both miniature models, by the fixture ``tiny``, is tested on one of them.

What is not chosen gets the marker ``exhaustive``: `make test-all` runs it. A case that is named on
the command line is alone there, covers itself and runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from zlib import crc32

import pytest

Case = dict[str, object]  # parameters that go together -> their values, hashable


def mark_repetitions(items: Sequence[pytest.Item]) -> None:
    """Of each test that is to be covered, mark all but a covering set of cases."""
    grids: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("covering") is not None:
            grids[item.nodeid.partition("[")[0]].append(item)
        elif not _is_on_its_model(item, items):
            item.add_marker("exhaustive")
    for cases in grids.values():
        candidates = [item for item in cases if _is_candidate(item)] or cases
        chosen = covering_set([_case(item) for item in candidates])
        kept = {candidates[number].nodeid for number in chosen}
        for item in cases:
            if item.nodeid not in kept:
                item.add_marker("exhaustive")


def _is_on_its_model(item: pytest.Item, items: Sequence[pytest.Item]) -> bool:
    """Whether the item's miniature model is the one of its test: half of the tests have each."""
    mine = getattr(item, "callspec", None) and item.callspec.params.get("tiny")
    if not mine or len(items) == 1:
        return True
    test = item.nodeid.partition("[")[0]
    return mine == ("gpt2", "llama")[crc32(test.encode()) % 2]


def covering_set(cases: Sequence[Case]) -> set[int]:
    """Numbers of few cases that hold every value of every parameter.

    Always the case with the most values that are still missing; of equals the one whose values
    were chosen least often, so that they meet in many pairs.
    """
    missing = {value for case in cases for value in case.items()}
    chosen: list[int] = []
    often: Counter[tuple[str, object]] = Counter()

    def worth(number: int) -> tuple[int, int]:
        values = cases[number].items()
        return len(missing & values), -sum(often[value] for value in values)

    while missing:
        chosen.append(max(range(len(cases)), key=worth))
        missing -= cases[chosen[-1]].items()
        often.update(cases[chosen[-1]].items())
    return set(chosen)


def _is_candidate(item: pytest.Item) -> bool:
    """Whether the item has the values that the marker asks for by name."""
    wanted = item.get_closest_marker("covering").kwargs
    return all(item.callspec.params[name] in values for name, values in wanted.items())


def _case(item: pytest.Item) -> Case:
    """What the item has of each parameter that is to be covered."""
    found, wanted = item.callspec.params, item.get_closest_marker("covering").args
    axes = [_names(argument) for argument in wanted] or _axes(item)
    unknown = {name for names in axes for name in names} - found.keys()
    if unknown:
        raise pytest.UsageError(f"{item.nodeid} has no parameter {', '.join(sorted(unknown))}")
    # The cases of a grid share their values, which need not be hashable.
    return {",".join(names): tuple(id(found[name]) for name in names) for names in axes}


def _axes(item: pytest.Item) -> list[tuple[str, ...]]:
    """All parameters; those of one ``parametrize`` go together."""
    axes = [_names(mark.args[0]) for mark in item.iter_markers("parametrize")]
    named = {name for names in axes for name in names}
    return [*axes, *((name,) for name in item.callspec.params if name not in named)]


def _names(argument: str | Sequence[str]) -> tuple[str, ...]:
    """Parameters as ``pytest.mark.parametrize`` is given them."""
    names = argument.split(",") if isinstance(argument, str) else argument
    return tuple(name.strip() for name in names)
