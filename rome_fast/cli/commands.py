"""How the command line tells of a mistake in its arguments: in one line, like every other error."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from rome_fast.cli.common import INTERRUPTED, complain

# click's, which typer has a copy of in some versions and imports in others.
_UsageError: Any = typer.BadParameter.__bases__[0]


class Commands(TyperGroup):
    """All commands; what is wrong with their arguments is a line that ends with where help is."""

    def main(  # type: ignore[override]  # the rest is in ``more``
        self, args: Any = None, prog_name: Any = None, **more: Any
    ) -> Any:
        """As typer's, but for how errors are shown."""
        standalone = more.get("standalone_mode", True)
        options = {**more, "standalone_mode": False}
        try:
            code = super().main(args, prog_name, **options)
        except _UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                path = "rome-fast" if error.ctx is None else error.ctx.command_path
                complain(f"{error.format_message()} ({path} --help)")
            sys.exit(error.exit_code)
        except typer.Abort:
            sys.exit(INTERRUPTED)
        if standalone:
            sys.exit(code if isinstance(code, int) else 0)
        return code
