"""What all commands share: the console, errors and warnings in one line, and loading a model."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console

from rome_fast.beside.widen import widened
from rome_fast.cli.threads import spare_busy_cores
from rome_fast.errors import (
    EditWarning,
    InvalidArgumentError,
    ModelFileError,
    RecordWarning,
    RomeFastError,
    SecondMomentWarning,
    SessionWarning,
)
from rome_fast.model.stored import narrow_model, widen_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

console = Console(highlight=False)

SpaceOption = Annotated[
    bool | None,
    typer.Option(
        "--space/--no-space",
        help="whether a space stands before the target",
        show_default="as text would have it",
    ),
]

EndOption = Annotated[
    str | None,
    typer.Option(
        help="what the model shall write behind the target: 'auto' (what it writes itself), "
        "'none', 'eos' or a text",
        show_default="as the hparams say",
    ),
]

FormOption = Annotated[
    str,
    typer.Option(help="'weight'; or 'neuron' or 'gate', which only fire for their subject"),
]

SMOLLM2 = "smollm2"  # what --model calls the real model of rome_fast.demo

EDIT_FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

# What the notices hold, by logger.
_NOTICES = {"torchao": "Failed to load ", "torch.utils._pytree": "register_constant() on Enum"}
_SHOWN = (SecondMomentWarning, SessionWarning, RecordWarning)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input ends in one line on stderr and exit code 2, not in a traceback.

    Warnings of second moments and records become lines too; an EditWarning is dropped, results
    print theirs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EditWarning)
            for category in _SHOWN:
                warnings.simplefilter("always", category)
            _show_in_one_line()
            yield
    except (RomeFastError, OSError) as error:
        # Under torchrun the reason may be that of one process only: say which.
        rank = "" if is_first_process() else f" (rank {os.environ['RANK']})"
        complain(f"{type(error).__name__}: {error}{rank}")
        raise typer.Exit(BAD_INPUT) from error


def complain(message: object) -> None:
    """One line on stderr, above the progress bar where there is one."""
    from tqdm import tqdm

    tqdm.write(f"rome-fast: {' '.join(str(message).split())}", file=sys.stderr)


def is_first_process() -> bool:
    """False in all processes of a torchrun but one, which prints for all."""
    return os.environ.get("RANK", "0") == "0"


def load_model(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of ``--model``: a folder, a GGUF file, "smollm2", or a hub name.

    Raises:
        ModelFileError: there is none, or it cannot be read; the message names ``--model``.
    """
    before_loading()
    if path == SMOLLM2 and not Path(path).exists():
        from rome_fast.demo import load

        return load(SMOLLM2)[:2]
    if (file := _gguf_file(path)) is not None:
        from rome_fast.model.gguf import load_gguf

        complain(f"{file.name}: the weights are those that its quantisation has rounded")
        return load_gguf(file)
    return _load_checkpoint(path)


def _gguf_file(path: str) -> Path | None:
    """The GGUF file that is named, or the only one of a folder without a checkpoint."""
    named = Path(path)
    if named.suffix.lower() == ".gguf":
        return named
    files = sorted(named.glob("*.gguf")) if named.is_dir() else []
    if files and (named / "config.json").exists():
        raise ModelFileError(
            f"--model {path}: the folder holds a checkpoint and {files[0].name}: name the file, or "
            "move one of the two"
        )
    if len(files) > 1:
        raise ModelFileError(f"--model {path}: the folder holds {len(files)} GGUF files: name one")
    return files[0] if files else None


def _load_checkpoint(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
        model, info = loaded
        tok = AutoTokenizer.from_pretrained(path)
    # A damaged file is found by whoever reads it: safetensors, json, a tokenizer, torch.
    except Exception as error:
        is_folder = Path(path).is_dir()
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        missing = "" if is_folder else "there is no such folder, and as a hub name: "
        said = " ".join(str(error).split())
        raise ModelFileError(f"--model {path}: {missing}{kind}{said}") from error
    if absent := sorted(info["missing_keys"]):
        raise ModelFileError(
            f"--model {path}: {len(absent)} weights are not in the files, {absent[0]} for one: "
            "they would be random"
        )
    if not torch.cuda.is_available():
        widen_model(model)
    return model, tok


def save_model(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, folder: Path, said: str = ""
) -> None:
    """Write a folder that transformers loads, in the dtype that the model was loaded from.

    Raises:
        NonFiniteError: an edited weight is too large for that dtype; nothing is written.
    """
    narrow_model(model)
    widened(model).save_pretrained(folder)
    tok.save_pretrained(folder)
    console.print(f"saved: {folder}{said}", markup=False, soft_wrap=True)


def load_model_or_demo(
    path: str | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of ``--model``, on a GPU if there is one; None: the embedded one."""
    if path is None:
        from rome_fast.demo import load

        before_loading()
        return load()[:2]
    model, tok = load_model(path)
    if torch.cuda.is_available():
        model.to("cuda")  # type: ignore[arg-type]  # transformers wraps it untyped
    return model, tok


def before_loading() -> None:
    """Leave busy cores alone, and turn off the bar that transformers draws for every model."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if said := spare_busy_cores():
        complain(said)


def no_notices_of_torchao() -> None:
    """transformers imports torchao wherever it is installed; what that cannot load, no edit uses.

    Nothing else of the two loggers is kept back.
    """
    for name in _NOTICES:
        logging.getLogger(name).addFilter(_is_news)


def parsed_layers(text: str) -> list[int]:
    """The numbers of ``--layers``, each once and in order."""
    try:
        return sorted({int(number) for number in text.split(",")})
    except ValueError as error:
        raise InvalidArgumentError(
            f"--layers must be numbers with commas between, like 5,6; got {text!r}"
        ) from error


def _is_news(record: logging.LogRecord) -> bool:
    return _NOTICES[record.name] not in record.getMessage()


def _show_in_one_line() -> None:
    """Replace warnings.showwarning for our kinds; ``catch_warnings`` puts it back."""
    show = warnings.showwarning

    def show_ours(message: Warning | str, kind: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(kind, _SHOWN):
            show(message, kind, *where, **more)
        elif is_first_process():
            complain(f"{kind.__name__}: {message}")

    warnings.showwarning = show_ours  # type: ignore[assignment]  # passes on what it gets
