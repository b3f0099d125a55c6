"""``rome-fast edit``: one fact, or a file of them, written into a model and saved if all hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from rome_fast.cli.common import EDIT_FAILED, console, load_model, one_line_errors
from rome_fast.cli.profile import ProfileOption, check_profile_path, profiled
from rome_fast.cli.records import FormatOption, LimitOption, SkipBadOption, read_records
from rome_fast.errors import InvalidArgumentError
from rome_fast.tokens import decode
from rome_fast.types import EditRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.scoring import Score
    from rome_fast.types import EditResult

# Rows of a table that still fit a terminal.
_ROWS = 25


def edit(
    model: Annotated[str, typer.Option(help="folder (or hub name) of a Hugging Face decoder")],
    prompt: Annotated[
        str | None, typer.Option(help="a sentence with the subject, or with {} for it")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="whom or what the fact is about")] = None,
    target: Annotated[str | None, typer.Option(help="what the model shall say next")] = None,
    requests: Annotated[
        Path | None,
        typer.Option(
            help="instead of the three: file of many, .json, .jsonl or .csv (CounterFact, "
            "EasyEdit, zsRE, FastEdit, or columns prompt, subject, target)"
        ),
    ] = None,
    format: FormatOption = "auto",
    limit: LimitOption = None,
    skip_bad: SkipBadOption = False,
    order: Annotated[
        str, typer.Option(help="of --requests: 'exact', or 'independent', faster, in windows")
    ] = "exact",
    window: Annotated[int, typer.Option(help="requests that 'independent' takes at a time")] = 16,
    save: Annotated[Path | None, typer.Option(help="folder for the edited model")] = None,
    hparams: Annotated[Path | None, typer.Option(help="kmeng01 JSON or EasyEdit YAML")] = None,
    second_moment: Annotated[str | None, typer.Option(help="a saved file, or 'identity'")] = None,
    variant: Annotated[str | None, typer.Option(help="overrides the hparams")] = None,
    profile: ProfileOption = None,
) -> None:
    """Change one fact of a model, or many; print what it says now, and save it if asked.

    Many are edited one after the other. Nothing is saved, and the exit code is 1, if the model
    does not say each target in the end.
    """
    import rome_fast

    with one_line_errors():
        chosen = None if hparams is None else rome_fast.RomeHparams.from_file(hparams)
        parsed = _requests(prompt, subject, target, requests, format, limit, skip_bad)
        if save is not None and save.exists() and any(save.iterdir()):
            raise OSError(f"--save {save} is not empty: name a new folder")
        check_profile_path(profile)
        loaded, tok = load_model(model)
        with profiled(profile):
            results = rome_fast.edit_many(
                loaded,
                tok,
                parsed,
                chosen,
                order=order,
                window=window,
                progress=requests is not None,
                second_moment=second_moment,
                variant=variant,
            )
        if requests is None:
            console.print(str(results[0]), markup=False)
            failed = not results[0].success
        else:
            failed = _print_all(loaded, tok, results)
        if failed:
            raise typer.Exit(EDIT_FAILED)
        if save is not None:
            loaded.save_pretrained(save)
            tok.save_pretrained(save)
            console.print(f"saved: {save}", markup=False)


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
        return [record.request for record in records]
    if prompt is None or subject is None or target is None:
        raise InvalidArgumentError("give --prompt, --subject and --target, or --requests")
    return [EditRequest(prompt, subject, target)]


def _print_all(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, results: Sequence[EditResult]
) -> bool:
    """A table of what each edit did and what is left of it; whether any does not hold."""
    from rome_fast.evaluate.records import Question
    from rome_fast.evaluate.scoring import score

    # Later edits may take an earlier one back, so the last word is that of the finished model.
    scores = score(model, tok, [Question(r.request.text, r.request.target) for r in results])
    probs = [math.exp(sum(s.log_probs)) for s in scores]
    held = sum(s.exact for s in scores)
    worst = sorted(range(len(results)), key=lambda i: (scores[i].exact, probs[i]))[:_ROWS]
    console.print(_table(tok, results, scores, probs, sorted(worst)))
    if len(results) > _ROWS:
        console.print(f"shown: the {_ROWS} that hold worst")
    for text, times in Counter(text for r in results for text in r.warnings).items():
        console.print(f"warning ({times} edits): {text}", markup=False, soft_wrap=True)
    seconds = sum(sum(r.seconds.values()) for r in results)
    lost = sum(r.success and not s.exact for r, s in zip(results, scores, strict=True))
    console.print(
        f"{held} of {len(results)} edits hold, {lost} took and were lost to later ones; layer "
        f"{results[0].layer}, {results[0].variant}, {seconds / len(results):.2f} s an edit",
        soft_wrap=True,
    )
    return held < len(results)


def _table(
    tok: PreTrainedTokenizerBase,
    results: Sequence[EditResult],
    scores: Sequence[Score],
    probs: Sequence[float],
    shown: Sequence[int],
) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "prompt", "target", "before", "after", "in the end", "model says"):
        table.add_column(name, no_wrap=name != "prompt")
    for i in shown:
        result, score = results[i], scores[i]
        table.add_row(
            str(i),
            Text(result.request.text),
            Text(result.request.target.strip()),
            f"{result.prob_before:.3f}",
            f"{result.prob_after:.3f}",
            f"{probs[i]:.3f}",
            Text(decode(tok, score.argmax_ids).strip(), style="" if score.exact else "red"),
        )
    return table
