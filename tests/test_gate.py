"""What is said in several places is the same in all: the version, and the README's figures."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import rome_fast

ROOT = Path(__file__).parents[1]


def test_version_is_one():
    said = {
        "pyproject.toml": r'^version = "(.+)"$',
        "CHANGELOG.md": r"^## \[(\d.+)\] - \d{4}-\d\d-\d\d$",
        "CITATION.cff": r"^version: (.+)$",
    }
    for name, pattern in said.items():
        found = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert found and found[1] == rome_fast.__version__, name


def test_tables_of_speed_in_the_readme_are_those_of_the_results(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import readme_tables

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    speed = readme_tables.speed_tables()
    shown = speed["gpt2-124m, layer 6 of 12"] + speed["embedded model, layer 2 of 6"]
    for line in [*shown, *readme_tables.order_table()]:
        assert f"{line}\n" in text, line
