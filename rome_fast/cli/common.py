"""What all commands share: the console, errors and warnings in one line, and loading a model."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer
from rich.console import Console

from rome_fast.errors import (
    EditWarning,
    InvalidArgumentError,
    RecordWarning,
    RomeFastError,
    SecondMomentWarning,
    SessionWarning,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

console = Console(highlight=False)

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
    """The model and tokenizer in a folder, or of a hub name.

    Raises:
        OSError: there is none; the message names ``--model``.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    no_loading_bars()
    try:
        model = AutoModelForCausalLM.from_pretrained(path)
        tok = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        missing = "" if Path(path).is_dir() else "there is no such folder, and as a hub name: "
        raise OSError(f"--model {path}: {missing}{error}") from error
    if model.dtype == torch.float16 and not torch.cuda.is_available():
        model = model.float()  # as demo.load() does: float16 is some 20 times slower on a CPU
    return model, tok


def load_model_or_demo(
    path: str | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a folder or hub name, on a GPU if there is one; None: the embedded one."""
    if path is None:
        from rome_fast.demo import load

        no_loading_bars()
        return load()[:2]
    model, tok = load_model(path)
    if torch.cuda.is_available():
        model.to("cuda")  # type: ignore[arg-type]  # transformers wraps it untyped
    return model, tok


def no_loading_bars() -> None:
    """Turn off the progress bar that transformers draws for every model that it loads."""
    from transformers.utils import logging

    logging.disable_progress_bar()


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
