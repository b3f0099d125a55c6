"""The verbs: edit a model for good, or for the length of a block."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from rome_fast.editor import Editor
from rome_fast.errors import EditWarning, InvalidRequestError
from rome_fast.hparams import RomeHparams
from rome_fast.models import ModelSpec, frozen
from rome_fast.types import EditRequest, EditResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.moments import SecondMoment

Request = EditRequest | Mapping[str, Any]


@overload
def edit(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    request: Request,
    hparams: RomeHparams | None = ...,
    *,
    second_moment: SecondMoment | str | Path | Iterable[str] | None = ...,
    context_templates: Sequence[str] | None = ...,
    variant: str | None = ...,
    backend: str = ...,
    strict: bool = ...,
) -> EditResult: ...


@overload
def edit(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    request: Sequence[Request],
    hparams: RomeHparams | None = ...,
    *,
    second_moment: SecondMoment | str | Path | Iterable[str] | None = ...,
    context_templates: Sequence[str] | None = ...,
    variant: str | None = ...,
    backend: str = ...,
    strict: bool = ...,
) -> list[EditResult]: ...


def edit(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    request: Request | Sequence[Request],
    hparams: RomeHparams | None = None,
    *,
    second_moment: SecondMoment | str | Path | Iterable[str] | None = None,
    context_templates: Sequence[str] | None = None,
    variant: str | None = None,
    backend: str = "auto",
    strict: bool = False,
) -> EditResult | list[EditResult]:
    """Change one fact of ``model``, in place, and report what the edited model says.

    Args:
        model: a Hugging Face decoder (GPT-2, Llama, ... family). Its parameters keep their
            storage; training mode, ``requires_grad`` and hooks are as before on return.
        tok: its tokenizer. Padding side and pad token do not matter and are not touched.
        request: an EditRequest, kmeng01/rome's dict (``target_new={"str": ...}``) or EasyEdit's
            flat one; the prompt is a template with ``{}`` or contains the subject. A list is
            edited in sequence, each request on the weights that the ones before it left.
        hparams: RomeHparams; None takes the model's preset or derives defaults, with a warning.
        second_moment: C = E[k k^T] as a SecondMoment, the path of a saved one, an iterable of
            texts, or ``"identity"``. None samples texts from the model once and caches the result.
        context_templates: texts with one ``{}`` each; None samples them (``hparams.seed``).
        variant: overrides ``hparams.variant``.
        backend: ``"auto"``, ``"native"`` or ``"torch"``.
        strict: raise EditFailedError, and undo, when the target is not the model's answer.

    Returns:
        An EditResult (a list of them for a list). ``result.revert()`` restores the weight's bits.

    Raises:
        RomeFastError: a subclass says what was wrong; the weights are bit-identical to before,
            for a list to before its first request.
    """
    requests = _parsed(request)
    spec = ModelSpec.of(model)
    results: list[EditResult] = []
    with torch.inference_mode(False), frozen(model):
        editor = Editor(spec, tok, hparams, variant, backend)
        editor.prepare(context_templates, second_moment)
        try:
            for r in requests:
                result = editor.edit(r, strict)
                results.append(result)
                for text in result.warnings:
                    warnings.warn(text, EditWarning, stacklevel=2)
        except BaseException:
            editor.history.rewind(0)
            raise
    return results[0] if isinstance(request, EditRequest | Mapping) else results


def _parsed(request: Request | Sequence[Request]) -> list[EditRequest]:
    if isinstance(request, EditRequest | Mapping | str) or not isinstance(request, Iterable):
        return [EditRequest.parse(request)]
    requests = []
    for index, item in enumerate(request):
        try:
            requests.append(EditRequest.parse(item))
        except InvalidRequestError as error:
            raise type(error)(f"request[{index}]: {error}") from error
    if not requests:
        raise InvalidRequestError("request is an empty list")
    return requests


@contextmanager
def trial(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    request: Request | Sequence[Request],
    hparams: RomeHparams | None = None,
    **options: Any,
) -> Iterator[Any]:
    """Edit on entry, restore the weight's bits on exit, also after an exception.

    Takes what ``edit`` takes and yields what it returns. Whatever else was done to the same weight
    inside the block is undone with it.

    Example:
        >>> with rome_fast.trial(model, tok, request) as result:
        ...     print(result)
    """
    result = edit(model, tok, request, hparams, **options)
    try:
        yield result
    finally:
        first = result[0] if isinstance(result, list) else result
        first._undo.history.rewind(0)
