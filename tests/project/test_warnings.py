"""Every warning of the package points at the user's line, through one function."""

import ast
from pathlib import Path

import pytest

import rome_fast
from rome_fast.errors import RecordWarning

PACKAGE = Path(rome_fast.__file__).parent


def test_a_warning_points_at_the_caller_of_the_package(tmp_path):
    path = tmp_path / "records.csv"
    path.write_text("prompt,subject,target\nParis is in,Paris,Spain\nParis is in,London,Spain\n")
    with pytest.warns(RecordWarning) as seen:
        rome_fast.load_records(path, on_error="skip")
    assert [w.filename for w in seen] == [__file__]


def test_all_warnings_go_through_that_function():
    calls = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
    ]
    assert [call.partition(":")[0] for call in calls] == ["errors.py"]
