"""The ``rome-fast`` command: a demonstration, edits, statistics, and what is installed.

Exit codes: 0 done, 1 an edit went through but the model does not say its target (nothing is
saved), 2 bad input or an error, told in one line, 130 interrupted with Ctrl-C.
"""

from __future__ import annotations

import typer

from rome_fast.cli import stats
from rome_fast.cli.bench import bench
from rome_fast.cli.check import check, compare
from rome_fast.cli.commands import Commands
from rome_fast.cli.common import no_notices_of_torchao
from rome_fast.cli.demo import demo
from rome_fast.cli.doctor import doctor
from rome_fast.cli.edit import edit
from rome_fast.cli.evaluate import evaluate
from rome_fast.cli.locate import locate, plan
from rome_fast.cli.log import apply, export, log
from rome_fast.cli.probe import probe

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.add_typer(stats.app, name="stats")
app.command()(edit)
app.command()(probe)
app.command()(doctor)
app.command()(evaluate)
app.command()(bench)
app.command()(locate)
app.command()(plan)
app.command()(log)
app.command()(apply)
app.command()(export)
app.command()(check)
app.command()(compare)
app.command()(demo)


@app.callback()
def main_options() -> None:
    """Edit one fact of a language model: fast, undoable, and truthful about it."""
    no_notices_of_torchao()


@app.command()
def info() -> None:
    """Say what is installed, which kernels run natively, and why others do not."""
    from rome_fast.info import main as show

    show()


def main() -> None:
    """Entry point of the console script."""
    app()
