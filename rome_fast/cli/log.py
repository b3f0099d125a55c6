"""``rome-fast log``, ``apply`` and ``export``: edits that were made, without making them again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rome_fast.cli.common import console, load_model, one_line_errors, save_model
from rome_fast.cli.paths import check_file, check_folder
from rome_fast.errors import InvalidArgumentError

if TYPE_CHECKING:
    from rome_fast.editlog import EditLog

_File = Annotated[Path, typer.Argument(help="an edit log, or the journal of a Session")]
_Without = Annotated[
    str | None, typer.Option(help="numbers of edits to leave out, with commas between")
]


def log(
    file: _File,
    last: Annotated[int | None, typer.Option(help="show only so many")] = None,
    without: _Without = None,
    save: Annotated[Path | None, typer.Option(help="write it as an edit log")] = None,
) -> None:
    """Show the edits in a file: which of them hold, and what was refused."""
    with one_line_errors():
        if last is not None and last < 0:
            raise InvalidArgumentError(f"--last must be 0 or more, got {last}")
        check_file("--save", save)
        read = _read(file, without)
        console.print(read.show(last), markup=False, soft_wrap=True)
        for rejection in read.rejections:
            refused = f"refused: {rejection.request}: {rejection.reason}"
            console.print(refused, markup=False, soft_wrap=True)
        if save is not None:
            read.save(save)
            console.print(f"saved: {save}", markup=False)


def apply(
    file: _File,
    model: Annotated[
        str, typer.Option(help="folder or hub name of the unedited model, .gguf file, or smollm2")
    ],
    save: Annotated[Path, typer.Option(help="folder for the edited model")],
    without: _Without = None,
    form: Annotated[
        str | None, typer.Option(help="take them as 'weight', 'neuron' or 'gate' edits")
    ] = None,
) -> None:
    """Write edits into the unedited model that they were made on, and save it."""
    with one_line_errors():
        check_folder("--save", save)
        read = _read(file, without)
        loaded, tok = load_model(model)
        if form is not None:
            read = read.as_form(form, loaded, tok)
        read.apply(loaded)
        save_model(loaded, tok, save, f", with {len(read)} edits")


def export(
    file: _File,
    lora: Annotated[Path, typer.Option(help="folder for a PEFT adapter")],
    max_rank: Annotated[
        int | None, typer.Option(help="approximate beyond this rank; default: exact")
    ] = None,
    without: _Without = None,
) -> None:
    """Write edits as a LoRA adapter, which PEFT and vLLM load beside the unedited model."""
    with one_line_errors():
        check_folder("--lora", lora)
        console.print(str(_read(file, without).to_lora(lora, max_rank)), soft_wrap=True)


def _read(file: Path, without: str | None) -> EditLog:
    from rome_fast.editlog import EditLog

    read = EditLog.load(file)
    for number in [] if without is None else without.split(","):
        try:
            edit_id = int(number)
        except ValueError as error:
            raise InvalidArgumentError(
                f"--without must be numbers with commas between, like 5,6; got {without!r}"
            ) from error
        read.revert(edit_id)
    return read
