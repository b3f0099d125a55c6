"""``rome-fast evaluate``: what a file of edits does to a model, with every metric and a report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rome_fast.cli.common import (
    INTERRUPTED,
    FormOption,
    complain,
    console,
    is_first_process,
    load_model_or_demo,
    one_line_errors,
)
from rome_fast.cli.paths import check_file
from rome_fast.cli.records import FormatOption, LimitOption, SkipBadOption, lines_of, read_records
from rome_fast.errors import InvalidArgumentError
from rome_fast.moment.collect.ranks import torchrun_group

if TYPE_CHECKING:
    from rome_fast.evaluate import Evaluation


def evaluate(
    called: typer.Context,
    records: Annotated[
        Path | None,
        typer.Option(help="file of edits and questions, .json, .jsonl, .csv or .xlsx"),
    ] = None,
    from_readings: Annotated[
        Path | None,
        typer.Option(help="instead of records: file of --readings; its figures, without a model"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="folder or hub name of a decoder, .gguf file, or smollm2",
            show_default="the embedded model",
        ),
    ] = None,
    format: FormatOption = "auto",
    limit: LimitOption = None,
    skip_bad: SkipBadOption = False,
    mode: Annotated[
        str, typer.Option(metavar="single|sequential", help="each alone, or one after the other")
    ] = "single",
    hparams: Annotated[
        Path | None, typer.Option(help="kmeng01 JSON, EasyEdit YAML, or kmeng01/gpt2-xl")
    ] = None,
    second_moment: Annotated[str | None, typer.Option(help="a saved file, or 'identity'")] = None,
    variant: Annotated[str | None, typer.Option(help="overrides the hparams")] = None,
    form: FormOption = "weight",
    protocol: Annotated[
        str,
        typer.Option(help="whose rules: rome, easyedit, strict or wild; several with commas"),
    ] = "rome",
    context: Annotated[
        str, typer.Option(help="how 'wild' asks: qa, one_shot, question, chat, or a text with {}")
    ] = "qa",
    judge: Annotated[
        str,
        typer.Option(metavar="exact|contained", help="which answers of 'wild' are right"),
    ] = "exact",
    stress: Annotated[
        bool,
        typer.Option("--stress", help="also ask behind other text, negated, and of the subject"),
    ] = False,
    generate_tokens: Annotated[
        int, typer.Option(help="length of the texts before and after; 0 for none")
    ] = 20,
    held_texts: Annotated[
        Path | None,
        typer.Option(help="file of other texts, one a line, for perplexity and KL drift"),
    ] = None,
    capability: Annotated[
        str | None,
        typer.Option(
            help="in sequential mode, tasks of lm-evaluation-harness, or YAML files of tasks, with "
            "commas between them, before and after"
        ),
    ] = None,
    capability_limit: Annotated[
        int | None,
        typer.Option(help="so many samples of each task at most", show_default="all"),
    ] = None,
    window: Annotated[int, typer.Option(help="records that are searched and judged together")] = 4,
    resume: Annotated[
        Path | None,
        typer.Option(help="file that keeps finished cases; where it is there, go on with it"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="file for all numbers, .json; for cases .csv, for a table .tex or .md"),
    ] = None,
    readings: Annotated[
        Path | None, typer.Option(help="file for the answers of 'wild' with verdicts, .jsonl")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="file for a report to look at, .html")] = None,
) -> None:
    """Edit the facts of a file, ask before and after, and say how well it went.

    No edit is kept. docs/metrics.md defines the metrics. --from-readings makes the figures of
    answers again, after verdicts in their file were changed by hand. Several processes or GPUs
    share the records of single mode under torchrun:

    torchrun --nproc-per-node 2 -m rome_fast evaluate ...
    """
    import rome_fast

    with one_line_errors(), torchrun_group() as distributed, _interruptible(resume):
        check_file("--out", out, (".json", ".csv", ".tex", ".md"))
        check_file("--html", html, (".html",))
        check_file("--readings", readings, (".jsonl",))
        check_file("--resume", resume)
        if from_readings is not None:
            _refuse_others(called, ("from_readings", "judge", "out", "html"))
            given = _is_given(called, "judge")
            found = rome_fast.Evaluation.from_readings(from_readings, judge if given else None)
            _show(found, ((out, found.save), (html, found.save_html)))
            return
        if records is None:
            raise InvalidArgumentError(
                "give --records FILE, or --from-readings FILE where the answers are there"
            )
        texts = [] if held_texts is None else lines_of("--held-texts", held_texts)
        chosen = None if hparams is None else rome_fast.RomeHparams.from_file(hparams)
        asked = read_records("--records", records, format, limit, skip_bad)
        loaded, tok = load_model_or_demo(model)
        evaluation = rome_fast.evaluate(
            loaded,
            tok,
            asked,
            mode,
            chosen,
            second_moment=second_moment,
            variant=variant,
            form=form,
            protocol=protocol,
            context=context,
            judge=judge,
            stress=stress,
            generate_tokens=generate_tokens,
            held_texts=texts,
            capability=[] if capability is None else capability.split(","),
            capability_limit=capability_limit,
            window=window,
            resume=resume,
            distributed=distributed,
        )
        if is_first_process():
            files = (
                (out, evaluation.save),
                (readings, evaluation.save_readings),
                (html, evaluation.save_html),
            )
            _show(evaluation, files)


def _show(
    evaluation: Evaluation, files: Iterable[tuple[Path | None, Callable[[Path], None]]]
) -> None:
    console.print(evaluation)
    for note in evaluation.setting["notes"]:
        console.print(f"warning: {note}", markup=False, soft_wrap=True)
    for path, save in files:
        if path is not None:
            save(path)
            console.print(f"saved: {path}", markup=False, soft_wrap=True)


def _refuse_others(called: typer.Context, allowed: Collection[str]) -> None:
    """Refuse the options that only say how a model is edited and asked."""
    for option in called.command.params:
        if option.name not in allowed and _is_given(called, option.name or ""):
            raise InvalidArgumentError(
                f"--from-readings asks no model, so {option.opts[0]} has no use beside it: leave "
                "it out"
            )


def _is_given(called: typer.Context, name: str) -> bool:
    source = called.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@contextmanager
def _interruptible(resume: Path | None) -> Iterator[None]:
    """Ctrl-C ends with a line that says what is kept, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt as error:
        from rome_fast.evaluate.journal import n_finished

        kept: list[Path] = []
        if resume is not None:
            kept = [resume, *resume.parent.glob(f"{resume.name}.rank*")]
        n_cases = sum(n_finished(path) for path in kept if path.exists())
        if is_first_process():
            complain(
                f"interrupted: {n_cases} finished cases are in {resume}, and the same command goes "
                "on with them"
                if n_cases
                else "interrupted, and no case is kept: --resume FILE keeps each finished one"
            )
        raise typer.Exit(INTERRUPTED) from error
