"""``rome-fast stats``: collect, merge, show and convert files of second moments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rome_fast.cli.collect import collect
from rome_fast.cli.common import one_line_errors
from rome_fast.cli.output import check_new_file, check_sample_size, say_saved, set_sample_size
from rome_fast.cli.show import print_moment
from rome_fast.errors import InvalidArgumentError, SecondMomentError
from rome_fast.moment.second_moment import SecondMoment

app = typer.Typer(
    no_args_is_help=True,
    help="Second moments of keys (C = E k k^T): collect them from text, merge, show, convert.",
)
app.command()(collect)


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="two or more, of one layer of one model")],
    out: Annotated[Path, typer.Option(help="new file, .safetensors or .npz")],
) -> None:
    """Add up files of second moments, as if their texts had been collected together."""
    with one_line_errors():
        check_new_file(out)
        if len(files) < 2:
            raise InvalidArgumentError(f"merge needs two files or more, got {len(files)}")
        if len({file.resolve() for file in files}) < len(files):
            raise InvalidArgumentError("merge got a file twice: its keys count once")
        total = SecondMoment.load(files[0])
        for file in files[1:]:
            part = SecondMoment.load(file)
            try:
                total.merge(part)
            except SecondMomentError as error:
                raise SecondMomentError(f"{files[0]} and {file}: {error}") from error
        check_sample_size(out, total.info.get("sample_size"))
        total.save(out)
        say_saved(out, total)


@app.command()
def show(file: Annotated[Path, typer.Argument(help=".safetensors or .npz")]) -> None:
    """Say what a file holds: keys, model, damping, condition and spectrum."""
    with one_line_errors():
        print_moment(SecondMoment.load(file), file)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help=".safetensors or .npz")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="new file, .safetensors or .npz")],
    sample_size: Annotated[
        int | None,
        typer.Option(
            help="for an .npz: the number of texts its reader asks for, mom2_n_samples of the "
            "hparams",
            show_default="what IN says",
        ),
    ] = None,
) -> None:
    """Turn a file into the reference's .npz (kmeng01/rome, EasyEdit, AlphaEdit), or back.

    An .npz says nothing of the model; a .safetensors made from one is only checked by its size.
    """
    with one_line_errors():
        check_new_file(out)
        moment = SecondMoment.load(source)
        check_sample_size(out, sample_size or moment.info.get("sample_size"))
        set_sample_size(moment, sample_size)
        moment.save(out)
        say_saved(out, moment)
