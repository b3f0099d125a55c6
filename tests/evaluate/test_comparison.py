"""Two evaluations beside one another: who is paired with whom, and what is written."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

import rome_fast
from rome_fast import EditRequest, Evaluation
from rome_fast.errors import InvalidArgumentError
from rome_fast.evaluate.metrics import summarise
from rome_fast.evaluate.result import CaseResult, Stage


def evaluation(values, n_skipped=0, **changes):
    """A case for each of the values of ES, None where it could not be asked."""
    cases = [
        CaseResult(
            *(i, f"case-{i}", EditRequest("{} plays the", f"Player {i}", "violin"), ()),
            {} if x is None else {"before": Stage({"ES": 0.0}), "after": Stage({"ES": x, "NM": x})},
            error="too long" if x is None else None,
        )
        for i, x in enumerate(values)
    ]
    cases = changes.pop("cases", lambda same: same)(cases)
    setting = {
        **{
            "mode": "single",
            "model": {"name": "small"},
            "weight_name": "w",
            "n_skipped": n_skipped,
        },
        **{"hparams": {"variant": "exact"}, "second_moment": "identity"},
    }
    return Evaluation(setting, summarise(cases, n_skipped), tuple(cases))


@pytest.fixture
def compared():
    """Eight of eight go up: of 2^8 ways to exchange sides two are as extreme."""
    return rome_fast.compare(evaluation([0.0] * 8), evaluation([1.0] * 8, n_skipped=1))


def test_a_difference_its_interval_and_p(compared):
    by_name = {row.name: row for row in compared.differences}
    assert list(by_name) == ["ES", "NM"] and compared.n_pairs == 8
    row = by_name["ES"]
    assert (row.first, row.second, row.difference.mean, row.difference.n) == (0, 1, 1, 8)
    assert (row.difference.low, row.difference.high) == (1, 1)
    assert row.p == pytest.approx(2 / 256) and row.corrected == pytest.approx(4 / 256)
    assert row.is_sure


def test_the_table_says_what_was_done(compared):
    console = Console(width=80, file=StringIO(), force_terminal=True, color_system="standard")
    console.print(compared)
    plain = Console(width=80, file=StringIO())
    plain.print(compared)
    lines = [" ".join(line.split()) for line in plain.file.getvalue().splitlines()]
    assert "ES 0.0 100.0 +100.0 +100.0, +100.0 0.0078 0.016 8" in lines
    assert "second: 9 records: 8 edited, 1 skipped, counted as failures" in lines
    said = " ".join(lines)
    assert "8 records in pairs" in said and "10,000 bootstrap samples of records" in said
    assert "p: all 256 sign flips" in said and "corrected for 2 metrics, bold below 0.05" in said
    assert re.search(r"\x1b\[1m *\+100\.0", console.file.getvalue())


def test_it_is_saved_in_four_forms(compared, tmp_path):
    for suffix in ("md", "csv", "tex", "json"):
        compared.save(tmp_path / f"table.{suffix}")
    markdown, latex = ((tmp_path / f"table.{x}").read_text("utf-8") for x in ("md", "tex"))
    row = "| `ES` | 0.0 | 100.0 | **+100.0** | +100.0, +100.0 | 0.0078 | **0.016** | 8 |"
    assert row in markdown.splitlines()
    assert r"ES & $0.0$ & $100.0$ & $\mathbf{+100.0}$ & $+100.0, +100.0$ & $0.0078$ & " in latex
    assert all(f"{compared.method}; shares in percent" in text for text in (markdown, latex))
    with (tmp_path / "table.csv").open(newline="") as file:
        [row, _] = csv.DictReader(file)
    assert (row["metric"], float(row["p"]), float(row["p_holm"])) == ("ES", 2 / 256, 4 / 256)
    fields = json.loads((tmp_path / "table.json").read_text("utf-8"))
    assert fields["method"] == compared.method and fields["n_pairs"] == 8
    assert fields["differences"][0]["difference"]["mean"] == 1


def test_pairs_are_of_the_same_record_whatever_the_order():
    first, second = evaluation([0.0, 0.25, 0.5]), evaluation([0.5, 0.75, 1.0, 0.0])
    second = replace(second, cases=second.cases[::-1])
    found = rome_fast.compare(first, second)
    assert found.n_pairs == 3  # the fourth is in no figure
    d = found.differences[0].difference
    assert (d.low, d.mean, d.high) == pytest.approx((0.5, 0.5, 0.5))


def test_what_one_side_could_not_ask_is_a_failure_there():
    [row, magnitude] = rome_fast.compare(
        evaluation([1.0, 1.0]), evaluation([1.0, None])
    ).differences
    assert (row.first, row.second, row.difference.n) == (1.0, 0.5, 2)
    assert (magnitude.name, magnitude.difference.n) == ("NM", 1)


def test_a_record_that_is_there_twice_counts_twice():
    def twice(cases):
        return [case for case in cases for _ in range(2)]

    found = rome_fast.compare(evaluation([0.0], cases=twice), evaluation([1.0], cases=twice))
    assert found.n_pairs == found.differences[0].difference.n == 2


def test_what_cannot_be_compared_is_refused():
    first = evaluation([1.0])
    other = evaluation([1.0], cases=lambda cases: [replace(cases[0], case_id="other")])
    with pytest.raises(InvalidArgumentError, match="no case of the one evaluation is in the other"):
        rome_fast.compare(first, other)
    with pytest.raises(InvalidArgumentError, match=r"stage must be .* got 'edit_time'; .* after"):
        rome_fast.compare(first, first, "edit_time")
