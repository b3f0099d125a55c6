"""Draw docs/figures/demo.svg: what ``rome-fast demo --model smollm2`` prints.

python tools/demo_picture.py > docs/figures/demo.svg
"""

from __future__ import annotations

import io

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME

from rome_fast.cli import demo

WIDTH = 100


def main() -> None:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    demo.console = console
    demo.demo("smollm2")
    title = "rome-fast demo --model smollm2"
    print(console.export_svg(title=title, theme=DEFAULT_TERMINAL_THEME))


if __name__ == "__main__":
    main()
