"""Typed errors and warnings.

Every message names the argument, the value received and the remedy. Whatever is raised, the
model's weights are bit-identical to what they were before the call.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

# Not the user's: the package, and what runs the body of a context manager.
_INSIDE = (str(Path(__file__).parent), contextlib.__file__)


class RomeFastError(Exception):
    """Base of everything that rome_fast raises on purpose."""


class InvalidArgumentError(RomeFastError, ValueError):
    """An argument has a value that cannot work; the message names it."""


class InvalidRequestError(InvalidArgumentError):
    """An edit request is incomplete or contradicts itself."""


class SubjectNotFoundError(InvalidRequestError):
    """The subject does not occur in the prompt; the nearest match is suggested."""


class ChatTemplateError(InvalidRequestError):
    """The tokenizer's chat template is missing, rejects the messages, or alters the prompt."""


class HparamsError(InvalidArgumentError):
    """A hyper-parameter is unknown or out of range; the message names field, value and range."""


class UnsupportedModelError(RomeFastError):
    """The model has no dense down-projection that a rank-one edit could be written to."""


class QuantizedWeightError(UnsupportedModelError):
    """The weight is quantised; the message names the method and the way out, an adapter."""


class TokenizerMismatchError(RomeFastError, ValueError):
    """The tokenizer does not belong to the model, or cannot report character offsets."""


class ModelFileError(RomeFastError, OSError):
    """A model's file is absent, damaged or of a kind that cannot be read."""


class SecondMomentError(RomeFastError, ValueError):
    """The second moment is unusable: wrong size or layer, not finite, or singular."""


class NonFiniteError(RomeFastError, ArithmeticError):
    """A weight, loss, key or value became NaN or infinite; the message says where."""


class InsufficientMemoryError(RomeFastError, MemoryError):
    """Not a single row of a request fits in memory; the message says what it would take."""


class EditRejectedError(RomeFastError):
    """The update was refused before it was written: too small a denominator, or too large a norm.

    Attributes:
        numbers: what decided, by name: "norm", "limit", "denominator", "cost"; those that apply.
    """

    def __init__(self, message: str, **numbers: float) -> None:
        super().__init__(message)
        self.numbers = numbers


class EditFailedError(RomeFastError):
    """``strict=True`` and the target is not the model's answer after the edit (rolled back)."""


class RevertError(RomeFastError):
    """An edit cannot be undone because the weight was changed again after it."""


# The errors of one request; any other error would fail all requests.
REFUSALS = (
    InvalidRequestError,
    TokenizerMismatchError,
    NonFiniteError,
    InsufficientMemoryError,
    EditRejectedError,
)


class EditLogError(RomeFastError, ValueError):
    """An edit log is damaged, lacks an edit, or belongs to another model; names which."""


class SessionError(RomeFastError):
    """A Session cannot do this now: it is closed, its weight is taken, or was changed by others."""


class JournalError(RomeFastError, OSError):
    """A Session's journal cannot be written or read; the edit was refused."""


class UnhealthyError(RomeFastError):
    """A Session has stopped because the model's health fell below its limits; says which."""


class BackendUnavailableError(RomeFastError, RuntimeError):
    """``backend="native"`` was asked for and the compiled library is not there."""


class RecordError(InvalidArgumentError):
    """A record of edits to evaluate is bad; the message says which one, and why."""


class JudgeError(InvalidArgumentError):
    """``judge=`` has raised, or returned no bool; every answer that it was to judge is kept.

    Attributes:
        evaluation: an Evaluation with the answers, judged by their words.
    """

    def __init__(self, message: str, evaluation: object) -> None:
        super().__init__(message)
        self.evaluation = evaluation


class CapabilityError(RomeFastError):
    """A task of lm-evaluation-harness cannot be fetched or run; the message names it, and why."""


class MissingExtraError(RomeFastError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""


class EditWarning(UserWarning):
    """An edit that went through, with something the user should know about it."""


class SessionWarning(UserWarning):
    """Something about a Session that the user should know: its health, or a torn journal."""


class SecondMomentWarning(UserWarning):
    """A second moment that can be solved with, at a price that the message names."""


class RecordWarning(UserWarning):
    """Records that were left out because they are bad; the message gives the reasons."""


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning that points at the line outside of the package that led to it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
