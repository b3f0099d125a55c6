"""``rome-fast doctor``: try an edit, and say why it does not take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from rome_fast.cli.answers import print_answers
from rome_fast.cli.common import EDIT_FAILED, SpaceOption, console, load_model, one_line_errors


def doctor(
    model: Annotated[
        str, typer.Option(help="folder or hub name of a decoder, .gguf file, or smollm2")
    ],
    prompt: Annotated[str, typer.Option(help="a sentence with the subject, or with {} for it")],
    subject: Annotated[str, typer.Option(help="whom or what the fact is about")],
    target: Annotated[str, typer.Option(help="what the model shall say next")],
    chat: Annotated[
        bool, typer.Option("--chat", help="put the prompt in the chat template")
    ] = False,
    space: SpaceOption = None,
    hparams: Annotated[
        Path | None, typer.Option(help="kmeng01 JSON, EasyEdit YAML, or kmeng01/gpt2-xl")
    ] = None,
    second_moment: Annotated[str | None, typer.Option(help="a saved file, or 'identity'")] = None,
    variant: Annotated[str | None, typer.Option(help="overrides the hparams")] = None,
) -> None:
    """Try an edit and say why it does not take, or what it may harm; nothing is kept.

    The exit code is 1 when something is wrong.
    """
    import rome_fast
    from rome_fast.evaluate.around import OTHER_SUBJECTS, Around

    with one_line_errors():
        chosen = None if hparams is None else rome_fast.RomeHparams.from_file(hparams)
        loaded, tok = load_model(model)
        request = rome_fast.EditRequest(prompt, subject, target, chat, space=space)
        around = Around(loaded, tok, request, OTHER_SUBJECTS)
        with rome_fast.trial(
            loaded, tok, request, chosen, second_moment=second_moment, variant=variant
        ) as result:
            answers = around.after()
        explanation = rome_fast.explain(result)
        findings = (*explanation.findings, *around.findings(answers))
        explanation = replace(explanation, findings=findings)
        console.print(str(result), markup=False, soft_wrap=True)
        print_answers(answers)
        console.print()
        console.print(str(explanation), markup=False, soft_wrap=True)
    if explanation.findings:
        raise typer.Exit(EDIT_FAILED)
