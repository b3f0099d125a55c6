"""``rome-fast check`` and ``compare``: two models, or two evaluations, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from rome_fast.cli.common import console, load_model, one_line_errors
from rome_fast.cli.paths import check_file
from rome_fast.cli.records import lines_of
from rome_fast.errors import InvalidArgumentError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from rome_fast.evaluate.beside import Beside


def check(
    edited: Annotated[
        str, typer.Argument(help="an edited model's folder, a PEFT adapter, a journal or edit log")
    ],
    base: Annotated[
        str, typer.Option(help="the unedited model: folder or hub name, .gguf file, or smollm2")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(help="texts to ask, one a line", show_default="the edited prompts of a log"),
    ] = None,
    tokens: Annotated[int, typer.Option(help="length of the answers")] = 12,
) -> None:
    """Ask the unedited and the edited model the same, and show what changed."""
    from rome_fast.evaluate.beside import answers_beside

    with one_line_errors():
        if tokens < 1:
            raise InvalidArgumentError(f"--tokens must be 1 or more, got {tokens}")
        asked = _prompts(prompts, Path(edited))
        model, tok = load_model(base)
        beside = answers_beside(model, tok, asked, tokens, _edited(edited, model))
        console.print(_table(beside))
        console.print(
            f"{len(beside.changed)} of {len(asked)} are answered otherwise; perplexity of the "
            f"prompts times {beside.perplexity:.3f}, KL {beside.kl:.4f} nats",
            soft_wrap=True,
        )


def compare(
    first: Annotated[Path, typer.Argument(help="JSON of `evaluate --out`")],
    second: Annotated[Path, typer.Argument(help="another one, of the same records")],
    out: Annotated[
        Path | None, typer.Option(help="file for the table, .md, .csv, .tex or .json")
    ] = None,
) -> None:
    """Show two evaluations of the same records side by side, paired by record.

    Each metric with the 95 % interval of the difference, its p-value, and that corrected for the
    number of metrics. docs/metrics.md says how they are made.
    """
    from rome_fast.evaluate import Evaluation
    from rome_fast.evaluate import compare as compared

    with one_line_errors():
        check_file("--out", out, (".md", ".csv", ".tex", ".json"))
        found = compared(Evaluation.load(first), Evaluation.load(second))
        console.print(found)
        if out is not None:
            found.save(out)
            console.print(f"saved: {out}", markup=False, soft_wrap=True)


def _prompts(file: Path | None, edited: Path) -> list[str]:
    if file is None:
        if not edited.is_file():
            raise InvalidArgumentError("give --prompts FILE: only a journal or log has its own")
        from rome_fast.editlog import EditLog

        return list(dict.fromkeys(edit.request.text for edit in EditLog.load(edited).holding()))
    asked = lines_of("--prompts", file)
    if not asked:
        raise InvalidArgumentError(f"--prompts {file} holds no text")
    return asked


def _edited(path: str, model: PreTrainedModel) -> Callable[[], PreTrainedModel]:
    """What makes the edited model: a log into the unedited one, an adapter onto it, or a folder."""
    if Path(path).is_file() and Path(path).suffix != ".gguf":
        from rome_fast.editlog import EditLog

        log = EditLog.load(path)

        def apply() -> PreTrainedModel:
            log.apply(model)
            return model

        return apply
    if (Path(path) / "adapter_config.json").exists():
        return lambda: _with_adapter(path, model)
    return lambda: load_model(path)[0]


def _with_adapter(path: str, model: PreTrainedModel) -> PreTrainedModel:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError(f"{path} is an adapter: pip install peft") from error
    adapted = PeftModel.from_pretrained(model, path)
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def _table(beside: Beside) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("prompt", "before", "after"):
        table.add_column(name, overflow="fold", ratio=1)
    for i, (prompt, before, after) in enumerate(
        zip(beside.prompts, beside.before, beside.after, strict=True)
    ):
        style = "bold" if i in beside.changed else "dim"
        table.add_row(*(Text(text.strip(), style) for text in (prompt, before, after)))
    return table
