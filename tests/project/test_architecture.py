"""docs/architecture.md tells the truth: the order of the rooms, the drawing, every file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PICTURE = (ROOT / "docs/figures/rooms.svg").read_text(encoding="utf-8")
ARROW = re.compile(r'data-from="(\w+)" data-to="(\w+)"')


@pytest.fixture
def rooms_picture(monkeypatch):
    pytest.importorskip("grimp", reason="import-linter is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.syspath_prepend(str(ROOT))
    import rooms_picture

    return rooms_picture


def lint(folder):
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    return subprocess.run(
        [*command, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_room_imports_only_rooms_below_it_and_there_is_no_circle():
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    done = lint(ROOT)
    assert done.returncode == 0 and "2 kept, 0 broken" in done.stdout, done.stdout


def test_an_arrow_that_runs_back_up_is_found(tmp_path):
    """The contract is one that can be broken."""
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    for file in (ROOT / "rome_fast").rglob("*.py"):
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    with (tmp_path / "rome_fast/model/weights.py").open("a") as file:
        file.write("\nfrom rome_fast.value import key  # noqa\n")
    done = lint(tmp_path)
    assert done.returncode == 1 and "A room imports only rooms below it BROKEN" in done.stdout


def test_the_drawing_has_the_arrows_of_the_imports(rooms_picture):
    drawn = set(ARROW.findall(PICTURE))
    assert drawn == rooms_picture.imports(list(rooms_picture.ROOMS))
    assert rooms_picture.picture() == PICTURE


def test_every_room_is_in_the_order_of_the_page():
    """As in pyproject.toml, from top to bottom."""
    order = (ROOT / "pyproject.toml").read_text().split("layers = [")[1].split("]")[0]
    rooms = re.findall(r"rome_fast\.(\w+)", order)
    table = PAGE.split("## The order of the rooms")[1].split("## ")[0]
    first_cells = "".join(line.split("|")[1] for line in table.splitlines() if line[:1] == "|")
    named = re.findall(r"`(\w+)(?:/|\.py)`", first_cells)
    assert named == [room for room in rooms if not room.startswith("_")]
    found = {f.stem for f in (ROOT / "rome_fast").iterdir() if f.suffix == ".py" or is_room(f)}
    assert found - {"__init__"} == set(rooms)


def is_room(path):
    return path.is_dir() and any(path.glob("*.py"))


def test_every_file_is_named():
    """In its room's section, or with its path, so that a reader finds what decides it."""
    missing = []
    for file in sorted((ROOT / "rome_fast").rglob("*.py")):
        room, *inner = file.relative_to(ROOT / "rome_fast").with_suffix("").parts
        if file.name in ("__init__.py", "__main__.py", "_version.py") or room in ("cli", "bench"):
            continue
        heading = f"### {room}:"
        section = PAGE.split(heading)[1].split("### ")[0] if heading in PAGE else PAGE
        path = "/".join(inner if heading in PAGE else [room, *inner])
        if f"`{path}.py`" not in section:
            missing.append(f"{room}: {path}")
    assert not missing


def test_every_file_that_is_named_is_there():
    gone = []
    for room, section in re.findall(r"^### (\w+):.*?$(.*?)(?=^##)", PAGE, re.M | re.S):
        named = re.findall(r"^\| `([\w/]+\.py)`", section, re.M)
        at = [ROOT / "rome_fast" / room / name for name in named]
        gone += [path for path in at if not path.exists()]
    assert not gone
