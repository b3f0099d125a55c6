"""Writes docs/command_line.md from the commands themselves; a test compares the two.

python tools/command_line_page.py
"""

from __future__ import annotations

import re
from pathlib import Path

import typer.main
from typer.cli import get_docs_for_click

from rome_fast.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "command_line.md"

HEAD = """# Command line

`rome-fast` and `python -m rome_fast` are the same.

| exit code | |
|---|---|
| 0 | done |
| 1 | the edit went through, but the model does not say the target; nothing is saved |
| 2 | bad input or an error, told in one line that says what to change |
| 130 | a collection was interrupted with Ctrl-C; `--resume` goes on |

"""


def page() -> str:
    """The page's text: a heading a command, with its usage and options."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="rome-fast")
    _, _, commands = text.partition("\n## ")
    # A usage line would only repeat the heading.
    commands = re.sub(r"\*\*Usage\*\*:\n\n```console\n.*?```\n\n", "", f"## {commands}", flags=re.S)
    return HEAD + commands.rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
