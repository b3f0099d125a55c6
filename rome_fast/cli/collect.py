"""``rome-fast stats collect``: text to files of second moments, alone or under torchrun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import typer

from rome_fast.cli.common import (
    INTERRUPTED,
    complain,
    console,
    is_first_process,
    load_model,
    one_line_errors,
    parsed_layers,
)
from rome_fast.cli.output import Output, check_sample_size, set_sample_size
from rome_fast.errors import InvalidArgumentError
from rome_fast.hparams import RomeHparams
from rome_fast.moment.collect.collector import collect_second_moment
from rome_fast.moment.collect.ordinary import ORDINARY_TEXT
from rome_fast.moment.collect.ranks import Ranks, torchrun_group

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# --dtype -> (dtype of the sum, compensated)
_SUMS = {
    "float32": (torch.float32, False),
    "float64": (torch.float64, False),
    "compensated": (torch.float32, True),
}


def collect(
    model: Annotated[
        str, typer.Option(help="folder or hub name of a decoder, .gguf file, or smollm2")
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="for one layer a file, .safetensors or the reference's .npz; else a folder that "
            "gets layer_<n>.safetensors each"
        ),
    ],
    texts: Annotated[
        Path | None,
        typer.Option(
            help="UTF-8 file with one text a line", show_default="ordinary text of the package"
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="0-based; all in one pass",
            show_default="the one that edit takes",
        ),
    ] = None,
    tokens: Annotated[
        str,
        typer.Option(
            metavar="auto|N",
            help="how many to read at most; auto: four a dimension of the key",
        ),
    ] = "auto",
    max_length: Annotated[int, typer.Option(help="tokens of a row; memory grows with it")] = 1024,
    documents: Annotated[
        str,
        typer.Option(
            metavar="separate|joined", help="whether the texts packed into a row see each other"
        ),
    ] = "separate",
    first_token: Annotated[
        str,
        typer.Option(
            metavar="keep|skip",
            help="the key at the start of a text; it is an outlier in many models, and the "
            "reference keeps it",
        ),
    ] = "keep",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="|".join(_SUMS),
            help="of the sum; compensated is about as exact as float64, as fast as float32",
        ),
    ] = "float32",
    sample_size: Annotated[
        int | None,
        typer.Option(
            help="for an .npz: the number of texts its reader asks for, mom2_n_samples of the "
            "hparams"
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="go on where the same command was interrupted or killed"),
    ] = False,
) -> None:
    """Collect second moments of the keys of ordinary text, for `edit --second-moment FILE`.

    A hidden checkpoint beside the output is written once a minute and on Ctrl-C,
    and deleted when the files are there.

    Several processes or GPUs share the rows under torchrun:

    torchrun --nproc-per-node 2 -m rome_fast stats collect ...
    """
    with one_line_errors():
        wanted = None if layers is None else parsed_layers(layers)
        budget, (sum_dtype, compensated) = _parsed_tokens(tokens), _parsed_dtype(dtype)
        check_sample_size(out, sample_size)
        with torchrun_group() as distributed, _interruptible() as outputs:
            loaded, tok = load_model(model)
            if torch.cuda.is_available():
                loaded.to("cuda")  # type: ignore[arg-type]  # transformers wraps it untyped
            wanted = wanted or [_default_layer(loaded)]
            output = Output(out, wanted, Ranks.current() if distributed else Ranks())
            output.check(resume)
            if resume and not output.interrupted and is_first_process():
                complain("there is no checkpoint to resume: starting at the beginning")
            outputs.append(output)
            moments = collect_second_moment(
                loaded,
                tok,
                ORDINARY_TEXT if texts is None else texts,
                wanted,
                tokens=budget,
                max_length=max_length,
                documents=documents,  # type: ignore[arg-type]  # checked there
                first_token=first_token,  # type: ignore[arg-type]
                dtype=sum_dtype,
                compensated=compensated,
                source="ordinary text" if texts is None else None,
                checkpoint=output.checkpoint,
                resume=resume,
                distributed=distributed,
            )
            for moment in moments.values():
                set_sample_size(moment, sample_size)
            output.write(moments)


@contextmanager
def _interruptible() -> Iterator[list[Output]]:
    """Ctrl-C ends with one line and exit code 130; yields a list to put the Output into."""
    outputs: list[Output] = []
    try:
        yield outputs
    except KeyboardInterrupt as error:
        kept = any(output.interrupted for output in outputs)
        if is_first_process():
            complain(
                "interrupted: run the same command with --resume to go on"
                if kept
                else "interrupted before there was anything to keep"
            )
        raise typer.Exit(INTERRUPTED) from error


def _parsed_tokens(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError as error:
        raise InvalidArgumentError(f"--tokens must be auto or a number, got {text!r}") from error


def _parsed_dtype(text: str) -> tuple[torch.dtype, bool]:
    if text not in _SUMS:
        raise InvalidArgumentError(f"--dtype must be one of {', '.join(_SUMS)}; got {text!r}")
    return _SUMS[text]


def _default_layer(model: PreTrainedModel) -> int:
    layer = RomeHparams.for_model(model).layers[0]
    if is_first_process():
        console.print(f"layer {layer}, the one that `edit` takes; --layers chooses others")
    return layer
