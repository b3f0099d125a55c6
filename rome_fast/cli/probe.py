"""``rome-fast probe``: what a model is made of, and which of its layers take an edit."""

from __future__ import annotations

from typing import Annotated

import typer

from rome_fast.cli.common import (
    EDIT_FAILED,
    console,
    load_model_or_demo,
    one_line_errors,
    parsed_layers,
)
from rome_fast.errors import InvalidArgumentError
from rome_fast.probe.trials import REQUEST
from rome_fast.types import EditRequest


def probe(
    model: Annotated[
        str | None,
        typer.Option(
            help="folder or hub name of a decoder, .gguf file, or smollm2",
            show_default="the embedded model",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="a sentence with the subject, or with {} for it")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="whom or what the fact is about")] = None,
    target: Annotated[str | None, typer.Option(help="what the model shall say next")] = None,
    layers: Annotated[
        str | None, typer.Option(help="to try, with commas between; default: all")
    ] = None,
) -> None:
    """Say what was found in a model, and try an edit in each of its layers; nothing is kept.

    Without --prompt, --subject and --target the fact is that the capital of France is Rome. The
    exit code is 1 when no layer takes the edit.
    """
    import rome_fast

    with one_line_errors():
        chosen = None if layers is None else parsed_layers(layers)
        request = _request(prompt, subject, target)
        loaded, tok = load_model_or_demo(model)
        found = rome_fast.probe(loaded, tok, request, layers=chosen)
        console.print(str(found), markup=False, soft_wrap=True)
    if not found.editable:
        raise typer.Exit(EDIT_FAILED)


def _request(prompt: str | None, subject: str | None, target: str | None) -> EditRequest:
    if prompt is None and subject is None and target is None:
        return REQUEST
    if prompt is None or subject is None or target is None:
        raise InvalidArgumentError("give all of --prompt, --subject and --target, or none")
    return EditRequest(prompt, subject, target)
