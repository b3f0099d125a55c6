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
| 1 from `doctor` | something is wrong with the edit |
| 2 | bad input or an error, told in one line that says what to change |
| 130 | interrupted with Ctrl-C; `stats collect --resume` and `edit --journal` go on |

"""


# What get_docs_for_click writes and the page needs not: usage lines, which repeat the heading,
# --help, lists of commands with texts cut short, and brackets around described defaults.
LEFT_OUT = (
    (r"\*\*Usage\*\*:\n\n```console\n.*?```\n\n", ""),
    (r"\* `--help`: [^\n]*\n", ""),
    (r"\*\*Commands\*\*:\n\n(\*[^\n]*\n)+\n", ""),
    (r"\*\*Options\*\*:\n\n(?!\*)", ""),
    (r"\[default: \((.*)\)\]", r"[default: \1]"),
)


def page() -> str:
    """The page's text: a heading a command, with what it does and its options."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="rome-fast")
    _, _, commands = text.partition("\n## ")
    for pattern, instead in LEFT_OUT:
        commands = re.sub(pattern, instead, commands, flags=re.DOTALL if "```" in pattern else 0)
    # Between backticks is code; elsewhere <n> would be taken for a tag.
    parts = commands.rstrip().split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return f"{HEAD}## {'`'.join(parts)}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
