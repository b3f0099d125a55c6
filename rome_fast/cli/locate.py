"""``rome-fast locate`` and ``rome-fast plan``: where a fact lies, and which layer to edit."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rome_fast.cli.common import (
    console,
    load_model_or_demo,
    one_line_errors,
    parsed_layers,
)
from rome_fast.cli.paths import check_file
from rome_fast.cli.records import FormatOption, SkipBadOption, read_records
from rome_fast.demo import model_path
from rome_fast.errors import InvalidArgumentError

if TYPE_CHECKING:
    from rome_fast.evaluate.records import EditRecord

PICTURES = (".png", ".svg", ".pdf")

ModelOption = Annotated[
    str | None,
    typer.Option(
        help="folder or hub name of a decoder, .gguf file, or smollm2",
        show_default="the embedded model",
    ),
]


def locate(
    prompt: Annotated[str, typer.Option(help="a sentence with the subject, or with {} for it")],
    subject: Annotated[str, typer.Option(help="whom or what the fact is about")],
    model: ModelOption = None,
    kinds: Annotated[
        str, typer.Option(metavar="KIND,...", help="states to restore")
    ] = "hidden,mlp,attn",
    noise: Annotated[float, typer.Option(help="in standard deviations of the embeddings")] = 3.0,
    samples: Annotated[int, typer.Option(help="noised rows that each score is the mean of")] = 10,
    window: Annotated[
        int | None,
        typer.Option(
            help="layers restored together for mlp and attn",
            show_default="10, or a quarter of fewer than 24",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="of the noise")] = 0,
    out: Annotated[
        list[Path] | None,
        typer.Option(help=f".json for the numbers, {', '.join(PICTURES)} for heat maps"),
    ] = None,
) -> None:
    """Trace which tokens' states, in which layers, carry what a model says of a subject.

    The subject is blurred with noise until the answer is lost; each state that is put back then
    shows, by how much of the answer returns, how much of the fact it holds.
    """
    import rome_fast

    with one_line_errors():
        for path in out or []:
            check_file("--out", path, (".json", *PICTURES))
        loaded, tok = load_model_or_demo(model)
        trace = rome_fast.locate(
            loaded,
            tok,
            prompt,
            subject,
            kinds=kinds.split(","),
            noise=noise,
            samples=samples,
            window=window,
            seed=seed,
        )
        console.print(trace)
        for path in out or []:
            trace.save(path) if path.suffix == ".json" else trace.plot(path)
            console.print(f"saved: {path}", markup=False, soft_wrap=True)


def plan(
    requests: Annotated[Path, typer.Argument(help="file of edits, .json, .jsonl, .csv or .xlsx")],
    model: ModelOption = None,
    out: Annotated[Path, typer.Option(help="file for the recommended hparams")] = Path("plan.yaml"),
    report: Annotated[Path | None, typer.Option(help="file for all numbers, .json")] = None,
    format: FormatOption = "auto",
    skip_bad: SkipBadOption = False,
    sample: Annotated[
        int, typer.Option(help="how many of the requests to try, spread over the file")
    ] = 7,
    layers: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="to try", show_default="those that tracing proposes"),
    ] = None,
    hparams: Annotated[
        Path | None,
        typer.Option(help="all but the layer; kmeng01 JSON, EasyEdit YAML, or kmeng01/gpt2-xl"),
    ] = None,
    second_moment: Annotated[
        str | None,
        typer.Option(
            help="folder of `stats collect`, with a file for each layer to try, or 'identity'",
            show_default="of ordinary text",
        ),
    ] = None,
) -> None:
    """Locate, try small, widen: trace some facts, try their edits layer by layer, recommend one.

    Nothing is edited for good: what it recommends is written for `rome-fast edit`.
    """
    import rome_fast

    with one_line_errors():
        check_file("--out", out)
        check_file("--report", report)
        base = None if hparams is None else rome_fast.RomeHparams.from_file(hparams)
        wanted = None if layers is None else parsed_layers(layers)
        records = _spread(read_records("REQUESTS", requests, format, None, skip_bad), sample)
        moments = _moments(second_moment)
        loaded, tok = load_model_or_demo(model)
        found = rome_fast.suggest_layer(
            loaded, tok, records, base, layers=wanted, second_moment=moments
        )
        console.print(found)
        found.hparams.save(out)
        console.print(f"saved: {out}", markup=False, soft_wrap=True)
        if report is not None:
            found.save(report)
            console.print(f"saved: {report}", markup=False, soft_wrap=True)
        command = ["edit", "--model", model or str(model_path()), "--requests", str(requests)]
        command += ["--format", format] if format != "auto" else []
        command += ["--skip-bad"] if skip_bad else []
        command += ["--hparams", str(out)]
        if moments is not None:
            chosen = moments if isinstance(moments, str) else moments[found.layer]
            command += ["--second-moment", str(chosen)]
        console.print(f"next: rome-fast {shlex.join(command)}", markup=False, soft_wrap=True)


def _spread(records: list[EditRecord], size: int) -> list[EditRecord]:
    """``size`` of the records, evenly over the list: files are often sorted by relation."""
    if size < 1:
        raise InvalidArgumentError(f"--sample must be at least 1, got {size}")
    n = min(size, len(records))
    return [records[i * len(records) // n] for i in range(n)]


def _moments(given: str | None) -> dict[int, Path] | str | None:
    """The files of a folder by their layer."""
    if given is None or given == "identity":
        return given
    files = {int(path.stem[6:]): path for path in Path(given).glob("layer_[0-9]*.safetensors")}
    if not files:
        raise InvalidArgumentError(
            f"--second-moment {given} must be 'identity', or a folder with files "
            "layer_<n>.safetensors, as `rome-fast stats collect --layers N,N --out FOLDER` makes it"
        )
    return files
