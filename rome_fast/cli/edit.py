"""``rome-fast edit``: one fact, or a file of them, written into a model and saved if all hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from rome_fast.cli.answers import print_answers
from rome_fast.cli.common import (
    EDIT_FAILED,
    EndOption,
    FormOption,
    SpaceOption,
    complain,
    console,
    is_first_process,
    load_model,
    one_line_errors,
    save_model,
)
from rome_fast.cli.edit_table import Row, print_all, rows_of
from rome_fast.cli.journal import edit_with_journal
from rome_fast.cli.paths import check_file, check_folder
from rome_fast.cli.profile import ProfileOption, profiled
from rome_fast.cli.records import FormatOption, LimitOption, SkipBadOption, read_records
from rome_fast.errors import InvalidArgumentError
from rome_fast.moment.collect.ranks import torchrun_group
from rome_fast.types import EditRequest


def edit(
    model: Annotated[
        str, typer.Option(help="folder or hub name of a decoder, .gguf file, or smollm2")
    ],
    prompt: Annotated[
        str | None, typer.Option(help="a sentence with the subject, or with {} for it")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="whom or what the fact is about")] = None,
    target: Annotated[str | None, typer.Option(help="what the model shall say next")] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="put the prompt, or those of --requests, in the chat template"),
    ] = False,
    space: SpaceOption = None,
    end: EndOption = None,
    contexts: Annotated[
        str | None,
        typer.Option(metavar="text|all", help="'all': also be said to a question and in a chat"),
    ] = None,
    requests: Annotated[
        Path | None,
        typer.Option(
            help="instead of the three: file of many, .json, .jsonl, .csv or .xlsx "
            "(CounterFact, EasyEdit, zsRE, FastEdit, or columns prompt, subject, target)"
        ),
    ] = None,
    format: FormatOption = "auto",
    limit: LimitOption = None,
    skip_bad: SkipBadOption = False,
    order: Annotated[
        str, typer.Option(help="of --requests: 'exact', or 'independent', faster, in windows")
    ] = "exact",
    window: Annotated[int, typer.Option(help="requests that 'independent' takes at a time")] = 16,
    journal: Annotated[
        Path | None,
        typer.Option(
            help="of --requests: edit through a Session that keeps this file; the same command "
            "goes on where it was interrupted, and log, apply and export read the file"
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="folder for the edited model")] = None,
    hparams: Annotated[
        Path | None, typer.Option(help="kmeng01 JSON, EasyEdit YAML, or kmeng01/gpt2-xl")
    ] = None,
    second_moment: Annotated[str | None, typer.Option(help="a saved file, or 'identity'")] = None,
    variant: Annotated[str | None, typer.Option(help="overrides the hparams")] = None,
    form: FormOption = "weight",
    profile: ProfileOption = None,
) -> None:
    """Change one fact of a model, or many; print what it says now, and save it if asked.

    Many are edited one after the other; with --journal earlier ones are protected from later ones,
    and what is out of proportion is held back. Nothing is saved, and the exit code is 1, if the
    model does not say each target in the end. Several processes or GPUs share the searches of
    --order independent under torchrun:

    torchrun --nproc-per-node 2 -m rome_fast edit --requests ... --order independent
    """
    import rome_fast
    from rome_fast.evaluate.around import Around

    with one_line_errors(), torchrun_group() as distributed:
        chosen = None if hparams is None else rome_fast.RomeHparams.from_file(hparams)
        parsed = _requests(prompt, subject, target, requests, format, limit, skip_bad)
        if chat:
            parsed = [replace(r, chat=True) if r.chat is None else r for r in parsed]
        if space is not None:
            parsed = [replace(r, space=space) if r.space is None else r for r in parsed]
        if end is not None:
            parsed = [replace(r, end=end) if r.end is None else r for r in parsed]
        if journal is not None and requests is None:
            raise InvalidArgumentError("--journal is for many edits: give --requests")
        if distributed and (journal is not None or order != "independent"):
            raise InvalidArgumentError(
                "torchrun shares the searches of --order independent, without --journal"
            )
        check_folder("--save", save)
        check_file("--journal", journal)
        check_file("--profile", profile, new=True)
        loaded, tok = load_model(model)
        if contexts is not None:
            chosen = chosen or rome_fast.RomeHparams.for_model(loaded, form=form)
            chosen = chosen.replace(contexts=contexts)
        options: dict[str, Any] = {"second_moment": second_moment, "variant": variant, "form": form}
        together: dict[str, Any] = {"order": order, "window": window}
        around = Around(loaded, tok, parsed[0]) if requests is None else None
        with profiled(profile):
            if journal is None:
                together |= {"progress": requests is not None, "distributed": distributed}
                results = rome_fast.edit_many(loaded, tok, parsed, chosen, **together, **options)
                rows, n_refused = rows_of(results), 0
            else:
                rows, n_refused = edit_with_journal(
                    journal, loaded, tok, parsed, chosen, together, options
                )
        if not is_first_process():
            return
        if around is not None:
            console.print(str(results[0]), markup=False, soft_wrap=True)
            print_answers(around.after())
            lost = [] if results[0].success else rows
        else:
            lost = print_all(loaded, tok, rows) if rows else []
        if lost or n_refused:
            if save is not None:
                _say_not_saved(save, lost, len(rows), model, journal)
            raise typer.Exit(EDIT_FAILED)
        if save is not None:
            save_model(loaded, tok, save)


def _say_not_saved(
    save: Path, lost: Sequence[Row], n_edits: int, model: str, journal: Path | None
) -> None:
    """What was not written, and the command that writes the edits that hold."""
    complain(f"{save} was not written: not every target is what the model says")
    if n_edits == len(lost):
        return
    if journal is None:
        complain("--journal FILE keeps the edits, and `rome-fast apply` saves those that hold")
        return
    without = ",".join(str(row.edit_id) for row in lost)
    left_out = f" --without {without}" if lost else ""
    complain(f"those that hold: rome-fast apply {journal} --model {model}{left_out} --save {save}")


def _requests(
    prompt: str | None,
    subject: str | None,
    target: str | None,
    file: Path | None,
    format: str,
    limit: int | None,
    skip_bad: bool,
) -> list[EditRequest]:
    """What was asked for: one request, or those of the file."""
    given = [part for part in (prompt, subject, target) if part is not None]
    if file is not None and given:
        raise InvalidArgumentError("--requests takes the place of --prompt, --subject, --target")
    if file is not None:
        records = read_records("--requests", file, format, limit, skip_bad)
        return [request for record in records for request in record.requests]
    if prompt is None or subject is None or target is None:
        raise InvalidArgumentError("give --prompt, --subject and --target, or --requests")
    return [EditRequest(prompt, subject, target)]
