"""The corridor: request -> tokens -> key -> value -> update -> what the model says now.

Orchestration only; this is the one file that knows the order of the steps.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from rome_fast import ops
from rome_fast.collect import resolve_second_moment
from rome_fast.contexts import check_context_templates, sample_context_templates
from rome_fast.errors import EditFailedError, EditWarning, HparamsError, InvalidRequestError
from rome_fast.hparams import RomeHparams, defaults_for
from rome_fast.key import compute_keys
from rome_fast.models import ModelSpec, check_tokenizer, frozen, max_positions
from rome_fast.readback import findings, read_target
from rome_fast.tokens import TokenizedEdit, encode
from rome_fast.types import EditRequest, EditResult
from rome_fast.undo import WeightHistory
from rome_fast.update import apply_update_, build_constraint
from rome_fast.value import optimize_value

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
        editor = _Editor(spec, tok, hparams, variant, backend)
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


@dataclass
class _Clock:
    """Seconds by phase; each ``lap`` books the time since the last one."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


class _Editor:
    """What the requests of one call share. Everything is resolved before anything is written."""

    def __init__(
        self,
        spec: ModelSpec,
        tok: PreTrainedTokenizerBase,
        hparams: RomeHparams | None,
        variant: str | None,
        backend: str,
    ) -> None:
        self.clock = _Clock()
        self.model, self.tok = spec.model, tok
        self.notes: list[str] = []
        check_tokenizer(self.model, tok)
        if not isinstance(hparams, RomeHparams | None):
            raise HparamsError(
                f"hparams must be a RomeHparams, got {type(hparams).__name__}: "
                "RomeHparams.from_file(path) reads files"
            )
        if hparams is None:
            hparams, note = defaults_for(self.model)
            self.notes += [note] if note else []
        self.hparams = hparams if variant is None else hparams.replace(variant=variant)
        self.projection = spec.down_projection(self.hparams.layer)
        self.backend = ops.resolve_backend(backend, self.projection.weight.device.type)
        weight = self.projection.weight
        if weight.dtype == torch.float16 and weight.device.type == "cpu":
            self.notes.append(
                "float16 is very slow on a CPU: load the model in float32 or bfloat16"
            )
        self.history = WeightHistory(self.projection, self.backend)
        self.clock.lap("prepare")

    def prepare(self, context_templates: Sequence[str] | None, second_moment: object) -> None:
        """The contexts and the second moment, sampled from the model where none are given."""
        hparams = self.hparams
        if context_templates is None:
            self.context_templates = sample_context_templates(
                self.model,
                self.tok,
                hparams.context_template_length_params,
                seed=hparams.seed,
            )
        else:
            self.context_templates = check_context_templates(context_templates)
        self.clock.lap("contexts")
        if second_moment is None and not hparams.mom2_adjustment:
            second_moment = "identity"
            self.notes.append(
                "hparams.mom2_adjustment is false: C is the identity, which harms neighbours"
            )
        dtype = getattr(torch, hparams.mom2_dtype)
        self.second_moment = resolve_second_moment(
            second_moment, self.model, self.tok, self.projection, dtype
        )
        if self.second_moment is not None and self.second_moment.count < self.projection.d_key:
            self.notes.append(
                f"second moment of {self.second_moment.count} keys for d_key "
                f"{self.projection.d_key}: neighbours are protected only from "
                f"{10 * self.projection.d_key} keys or so"
            )
        self.clock.lap("second moment")

    def edit(self, request: EditRequest, strict: bool) -> EditResult:
        """One request on the weights as they are now."""
        hparams, projection, clock = self.hparams, self.projection, self.clock
        tokens = encode(self.tok, request, self.context_templates, hparams.fact_token)
        self._check_length(request, tokens)
        prompt, target = tokens.prompt_ids.tolist(), tokens.target_ids.tolist()
        clock.lap("prepare")
        keys = compute_keys(self.model, projection, tokens)
        clock.lap("key")
        value = optimize_value(self.model, projection, tokens, keys.value_init, hparams)
        clock.lap("value")
        before = read_target(self.model, self.tok, prompt, target)
        weight_norm = float(projection.weight.double().norm())
        clock.lap("read before")
        constraint = build_constraint(hparams.variant, keys, value.value_delta, self.second_moment)
        update = apply_update_(projection, constraint, self.second_moment, self.backend)
        undo = self.history.record(update)
        clock.lap("update")
        after = read_target(self.model, self.tok, prompt, target)
        clock.lap("read after")
        result = EditResult(
            request=request,
            layer=projection.layer,
            weight_name=f"{projection.name}.weight",
            subject_token=tokens.subject_token,
            target_tokens=tokens.target_tokens,
            prob_before=before.prob,
            prob_after=after.prob,
            rank_before=before.rank,
            rank_after=after.rank,
            argmax_before=before.argmax,
            argmax_after=after.argmax,
            update=update,
            update_norm=update.norm,
            weight_norm=weight_norm,
            losses=value.losses,
            seconds=clock.seconds,
            backend=self.backend,
            variant=hparams.variant,
            second_moment="identity" if self.second_moment is None else str(self.second_moment),
            context_templates=tuple(self.context_templates),
            warnings=(
                *self.notes,
                *request.findings(),
                *value.findings(),
                *findings(request.target, before, after),
            ),
            _undo=undo,
        )
        self.clock, self.notes = _Clock(), []
        if strict and not result.success:
            raise EditFailedError(f"strict=True, and the edit was undone:\n{result}")
        return result

    def _check_length(self, request: EditRequest, tokens: TokenizedEdit) -> None:
        longest, limit = tokens.input_ids.shape[1], max_positions(self.model)
        if limit is not None and longest > limit:
            raise InvalidRequestError(
                f"request prompt {request.text[:60]!r} and target make {longest} tokens with their "
                f"contexts, but the model takes {limit}: shorten the prompt"
            )
