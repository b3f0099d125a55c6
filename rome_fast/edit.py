"""The verbs: edit one fact or many, for good or for the length of a block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.editor import Editor
from rome_fast.errors import EditWarning, InvalidArgumentError, InvalidRequestError, warn
from rome_fast.hparams import RomeHparams
from rome_fast.model.hashes import fingerprint, model_hash
from rome_fast.model.open_model import open_model
from rome_fast.model.owner import locked
from rome_fast.moment.collect.ranks import Ranks
from rome_fast.timings import progress_bar
from rome_fast.types import EditRequest, EditResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.moment.second_moment import SecondMoment

Request = EditRequest | Mapping[str, Any]
ORDERS = ("exact", "independent")


def edit(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    request: Request,
    hparams: RomeHparams | None = None,
    *,
    second_moment: SecondMoment | str | Path | Iterable[str] | None = None,
    context_templates: Sequence[str] | None = None,
    variant: str | None = None,
    backend: str = "auto",
    form: str = "weight",
    strict: bool = False,
) -> EditResult:
    """Change one fact of ``model``, in place, and report what the edited model says.

    Args:
        model: a Hugging Face decoder (GPT-2, Llama, ... family). Its parameters keep their
            storage; training mode, ``requires_grad`` and hooks are as before on return.
        tok: its tokenizer. Padding side and pad token do not matter and are not touched.
        request: an EditRequest, kmeng01/rome's dict (``target_new={"str": ...}``) or EasyEdit's
            flat one; the prompt is a template with ``{}`` or contains the subject.
        hparams: RomeHparams; None takes the model's preset or derives defaults, with a warning.
        second_moment: C = E[k k^T] as a SecondMoment, the path of a saved one, an iterable of
            texts, or ``"identity"``. None reads ordinary text of the package, once.
        context_templates: texts with one ``{}`` each; None samples them (``hparams.seed``).
        variant: overrides ``hparams.variant``.
        backend: ``"auto"``, ``"native"`` or ``"torch"``.
        form: ``"weight"`` changes the matrix (ROME). ``"neuron"`` and ``"gate"`` change no weight:
            beside the MLP stands what only fires for the subject (docs/forms.md).
        strict: raise EditFailedError, and undo, when the target is not the model's answer.

    Returns:
        An EditResult; its ``revert()`` restores the weight's bits.

    Raises:
        RomeFastError: a subclass says what was wrong; the weights are bit-identical to before.
    """
    if isinstance(request, list | tuple):
        raise InvalidRequestError("request is a list: edit_many() takes several")
    parsed = [EditRequest.parse(request)]
    shared = (hparams, variant, backend, context_templates, second_moment)
    with opened(model, tok, *shared, parsed, form) as editor:
        editor.history.share_base()
        return _edit_in_windows(editor, parsed, 1, strict, progress=False)[0]


def edit_many(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    requests: Iterable[Request],
    hparams: RomeHparams | None = None,
    *,
    order: str = "exact",
    window: int = 16,
    distributed: bool = False,
    progress: bool = True,
    second_moment: SecondMoment | str | Path | Iterable[str] | None = None,
    context_templates: Sequence[str] | None = None,
    variant: str | None = None,
    backend: str = "auto",
    form: str = "weight",
    strict: bool = False,
) -> list[EditResult]:
    """Change many facts of ``model``, in place, one result per request.

    Args:
        requests: as ``edit`` takes them; all are read before the first is edited.
        order: ``"exact"`` edits one after the other, each on the weights that those before it
            left, like so many calls of ``edit``. ``"independent"`` takes a window of requests at a
            time: their values are searched together on the same weights, which is faster, and one
            least change of the matrix meets all their constraints. A request whose key depends on
            those before it in its window (the same subject) begins the next one.
        window: how many requests ``"independent"`` takes at a time. As many of them as fit in
            memory share a forward.
        distributed: share the searches of each window among the processes of torch.distributed
            (torchrun), which must all call this with models of their own; each of these gets all
            of the edits, and each process all of the results.
        progress: show a bar.

    The other arguments are those of ``edit``. With ``strict`` one failure undoes all.

    Returns:
        EditResults in order; the last of them can be reverted, then the one before it, and so on.
        ``result.window`` says how many requests were solved together.

    Raises:
        RomeFastError: a subclass says what was wrong; the weights are bit-identical to before the
            first request.
    """
    size = check_order(order, window)
    if distributed and order != "independent":
        raise InvalidArgumentError(
            "distributed= is for order='independent': in 'exact' each edit waits for the one "
            "before it"
        )
    ranks = Ranks.current() if distributed else Ranks()
    parsed = parse_many(requests)
    if not parsed:
        raise InvalidRequestError("requests is empty")
    shared = (hparams, variant, backend, context_templates, second_moment)
    with opened(model, tok, *shared, parsed, form) as editor:
        editor.history.share_base()
        editor.ranks = ranks
        _check_alike(
            editor, parsed, "have different models, requests or arguments: give all the same"
        )
        results = _edit_in_windows(editor, parsed, size, strict, progress and ranks.rank == 0)
        _check_alike(
            editor,
            [],
            "have come to different weights, and all is undone: their machines compute otherwise",
        )
        return results


def _check_alike(editor: Editor, requests: Sequence[EditRequest], otherwise: str) -> None:
    """Raise InvalidArgumentError unless all processes have the same, by its hash."""
    if editor.ranks.size == 1:
        return
    moment = editor.second_moment
    tensors = [] if moment is None else [moment.moment_sum]
    told = (requests, editor.hparams, editor.context_templates, model_hash(editor.spec))
    held = fingerprint(editor.projection.weight, *tensors)
    digest = hashlib.sha256(f"{told}{held}".encode()).hexdigest()
    if not editor.ranks.all_equal(int(digest, 16) >> 193):
        raise InvalidArgumentError(f"distributed=True, and the processes {otherwise}")


def check_order(order: str, window: int) -> int:
    """How many requests are taken at a time. Raises InvalidArgumentError."""
    if order not in ORDERS:
        raise InvalidArgumentError(f"order must be one of {ORDERS}, got {order!r}")
    if type(window) is not int or window < 1:
        raise InvalidArgumentError(f"window must be a whole number of 1 or more, got {window!r}")
    return window if order == "independent" else 1


@contextmanager
def opened(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    hparams: RomeHparams | None,
    variant: str | None,
    backend: str,
    context_templates: Sequence[str] | None,
    second_moment: object,
    requests: Sequence[EditRequest] = (),
    form: str = "weight",
) -> Iterator[Editor]:
    """An editor with all that its requests share; an error undoes all that it has done.

    ``requests``: all that will be edited, where they are known.
    """
    with open_model(model) as spec:
        editor = Editor(spec, tok, hparams, variant, backend, form=form)
        editor.prepare(context_templates, second_moment, requests)
        if form != "weight":
            editor.writer()
        try:
            yield editor
        except BaseException:
            editor.edits.rewind()
            raise
        finally:
            editor.history.close()


def _edit_in_windows(
    editor: Editor, requests: Sequence[EditRequest], size: int, strict: bool, progress: bool
) -> list[EditResult]:
    results: list[EditResult] = []
    with progress_bar(show=progress, total=len(requests), desc="edits", unit="edit") as bar:
        editor.tell = bar.set_postfix_str
        while len(results) < len(requests):
            made = editor.edit(requests[len(results) : len(results) + size], strict)
            results += made
            bar.update(len(made))
            for text in (text for result in made for text in result.warnings):
                warn(text, EditWarning)
    return results


def check_many(requests: object) -> None:
    """Raise InvalidRequestError if it is a single request, or no iterable of them."""
    if isinstance(requests, EditRequest | Mapping | str) or not isinstance(requests, Iterable):
        raise InvalidRequestError(
            f"requests must be a list of requests, got {type(requests).__name__}: edit() takes "
            "one, or wrap it in a list"
        )


def parse_many(requests: Iterable[Request]) -> list[EditRequest]:
    """All requests; an error names the place of the bad one. Raises InvalidRequestError."""
    check_many(requests)
    parsed = []
    for index, item in enumerate(requests):
        try:
            parsed.append(EditRequest.parse(item))
        except InvalidRequestError as error:
            raise type(error)(f"requests[{index}]: {error}") from error
    return parsed


@contextmanager
def trial(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    request: Request | Iterable[Request],
    hparams: RomeHparams | None = None,
    **options: Any,
) -> Iterator[Any]:
    """Edit on entry, restore the weight's bits on exit, also after an exception.

    Takes what ``edit`` takes, or a list and what ``edit_many`` takes, and yields what that
    returns. Whatever else was done to the same weight inside the block is undone with it.

    Example:
        >>> with rome_fast.trial(model, tok, request) as result:
        ...     print(result)
    """
    one = isinstance(request, EditRequest | Mapping)
    verb: Any = edit if one else edit_many
    made = verb(model, tok, request, hparams, **options)
    try:
        yield made
    finally:
        undo = (made if one else made[0])._undo
        with locked(model):
            undo.rewind()
