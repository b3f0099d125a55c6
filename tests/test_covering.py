"""What `make test` runs of a grid: every value of every parameter, in few cases."""

from __future__ import annotations

import itertools

import pytest
from covering import covering_set

pytest_plugins = ["pytester"]


def grid(*sizes):
    axes = (range(size) for size in sizes)
    return [dict(zip("abcd", values, strict=False)) for values in itertools.product(*axes)]


@pytest.mark.parametrize(("sizes", "n_kept"), [((4,), 4), ((5, 2, 3), 5), ((2, 2, 2, 2), 2)])
def test_as_few_cases_as_the_longest_parameter_has_values(sizes, n_kept):
    cases = grid(*sizes)
    kept = [cases[number] for number in covering_set(cases)]
    assert len(kept) == n_kept
    for name, size in zip("abcd", sizes, strict=False):
        assert {case[name] for case in kept} == set(range(size))


def test_values_meet_in_different_pairs():
    cases = grid(4, 2)
    assert sorted(cases[i]["b"] for i in covering_set(cases)) == [0, 0, 1, 1]


def test_values_that_never_meet_are_all_kept():
    cases = [{"a": 0, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 1}]
    assert covering_set(cases) == {0, 2}


GRID = """
import pytest

@pytest.fixture(params=["x", "y"])
def kind(request):
    return request.param

@pytest.mark.covering
@pytest.mark.parametrize("n", [1, 2, 3])
def test_all(kind, n): pass

@pytest.mark.covering("kind")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_one(kind, n): pass

@pytest.mark.covering
@pytest.mark.parametrize(("n", "d"), [([1], 1), ([1], 2), ([2], 1), ([2], 2)])
def test_pairs(kind, n, d): pass

@pytest.mark.covering("kind,n")
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("d", [1, 2])
def test_pairs_that_are_asked_for(kind, n, d): pass

@pytest.mark.covering(n=[2, 3])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_some(kind, n): pass

@pytest.fixture(params=["gpt2", "llama"])
def tiny(request):
    return request.param

@pytest.mark.parametrize("n", [1, 2, 3])
def test_of_both_models(tiny, n): pass

@pytest.mark.covering("kidn")
def test_misspelt(kind): pass
"""
CONFTEST = "from covering import mark_repetitions as pytest_collection_modifyitems"


def test_the_rest_is_marked_and_a_named_case_runs(pytester):
    pytester.makeconftest(CONFTEST)
    path = pytester.makepyfile(GRID.split('\n@pytest.mark.covering("kidn")')[0])
    pytester.inline_run("-m", "not exhaustive", path).assertoutcome(passed=3 + 2 + 4 + 6 + 2 + 3)
    pytester.inline_run("-m", "exhaustive", path).assertoutcome(passed=3 + 4 + 4 + 6 + 4 + 3)
    for case in ("all[x-2]", "some[x-1]"):
        found = pytester.inline_run("-m", "not exhaustive", f"{path}::test_{case}")
        found.assertoutcome(passed=1)


def test_a_parameter_that_is_not_there_is_named(pytester):
    pytester.makeconftest(CONFTEST)
    found = pytester.runpytest_inprocess(pytester.makepyfile(GRID))
    assert "has no parameter kidn" in str(found.stderr)
