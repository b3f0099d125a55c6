"""What is said in several places is the same in all: the version, and the README's figures."""

from __future__ import annotations

import re
from pathlib import Path

import rome_fast
from benchmarks import document_tables, paper_tables
from benchmarks.evaluate.tables import compared
from benchmarks.gpu.tables import gpu_in_readme
from benchmarks.support.tables import read
from rome_fast.evaluate.protocols import PROTOCOLS

ROOT = Path(__file__).parents[2]


def test_version_is_one():
    said = {
        "pyproject.toml": r'^version = "(.+)"$',
        "CHANGELOG.md": r"^## \[(\d.+)\] - \d{4}-\d\d-\d\d$",
        "CITATION.cff": r"^version: (.+)$",
    }
    for name, pattern in said.items():
        found = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert found and found[1] == rome_fast.__version__, name


def test_the_first_edit_of_the_readme_is_that_of_the_results():
    models = read("real-model-first-edit")["models"]
    seconds = [round(models[name]["seconds"]) for name in ("SmolLM2-135M", "GPT-2 small's shape")]
    english, chinese = ((ROOT / f"README{x}.md").read_text("utf-8") for x in ("", ".zh-CN"))
    assert f"takes {seconds[0]} s on two idle cores" in english
    assert f"GPT-2 small's shape {seconds[1]} s" in english
    assert f"SmolLM2 用 {seconds[0]} 秒" in chinese
    assert f"GPT-2 small 的形状 {seconds[1]} 秒" in chinese


def test_the_edits_on_a_card_are_the_same_in_both_readmes():
    (english,) = gpu_in_readme()
    seconds = re.findall(r"[\d.]+ s\b", english)
    chinese = (ROOT / "README.zh-CN.md").read_text("utf-8")
    assert len(seconds) == 3 and all(one in chinese for one in seconds)


def test_tables_in_the_documents_are_those_of_the_results():
    for document, lines in document_tables.documents().items():
        text = (ROOT / document).read_text(encoding="utf-8")
        for line in lines:
            assert f"{line}\n" in text, f"{document}: {line}"


def test_every_published_figure_has_its_source_and_its_rules():
    rows = paper_tables.papers()
    for row in rows:
        assert re.match(r"arXiv \d{4}\.\d{5}(,|$)|EasyEdit, README$", row["source"]), row
        assert row["protocol"] in PROTOCOLS and row["how"] in paper_tables.HOW, row
        assert row["read"] in paper_tables.READ and row["method"] and row["model"], row
        figures = [row[name] for name in ("eff", "gen", "spe") if row[name]]
        assert figures and all(0 <= float(figure) <= 100 for figure in figures), row
        assert (row["edits"] == "0") == (row["method"] == "unedited"), row
        assert row["how"] != "alone" or row["edits"] in ("0", "1"), row
    assert len({tuple(row.values()) for row in rows}) == len(rows)


def test_the_page_of_published_figures_has_a_table_for_each_protocol_and_no_other_figure():
    shown = (ROOT / "docs" / "comparable.md").read_text("utf-8").splitlines()
    tables = [line for name in PROTOCOLS for line in paper_tables.protocol_table(name)]
    assert sorted(line for line in shown if line.startswith("|")) == sorted(tables)


def test_what_is_said_of_the_agreement_with_the_authors_own_code_is_so():
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    nlls = compared("kmeng01", "NLL").values()
    n, largest = sum(row["n"] for row in nlls), max(row["largest"] for row in nlls)
    assert f"The {n} NLLs differ by {largest * 1e6:.0f} · 10⁻⁶ nats at most" in page
    for code, kind in (
        ("kmeng01", "likeliest token"),
        ("easyedit", "accuracy"),
        ("easyedit", "greedy"),
        ("easyedit", "token asked alone"),
    ):
        rows = compared(code, kind)
        assert len(rows) == 2 and not any(row["differing"] for row in rows.values()), kind
    together = compared("easyedit", "token asked with others")
    toy, real = together["embedded model"], together["SmolLM2-135M"]
    said = f"{toy['differing']} of the {toy['n']} tokens of the embedded model, and "
    assert f"{said}{real['differing'] or 'none'} of the {real['n']} of SmolLM2" in page
