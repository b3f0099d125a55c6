"""What is said in several places is the same in all: the version, and the README's figures."""

from __future__ import annotations

import re
from pathlib import Path

import rome_fast
from benchmarks import document_tables

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


def test_tables_in_the_documents_are_those_of_the_results():
    for document, lines in document_tables.documents().items():
        text = (ROOT / document).read_text(encoding="utf-8")
        for line in lines:
            assert f"{line}\n" in text, f"{document}: {line}"
