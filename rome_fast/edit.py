"""The corridor: request -> tokens -> key -> value -> update -> what the model says now.

Orchestration only; this is the one file that knows the order of the steps.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import torch

from rome_fast import ops
from rome_fast.collect import resolve_second_moment
from rome_fast.contexts import check_context_templates, sample_context_templates
from rome_fast.errors import EditFailedError, EditWarning, InvalidRequestError
from rome_fast.hparams import RomeHparams, defaults_for
from rome_fast.key import compute_keys
from rome_fast.models import DownProjection, ModelSpec, check_tokenizer
from rome_fast.readback import Reading, read_target
from rome_fast.tokens import encode
from rome_fast.types import EditRequest, EditResult
from rome_fast.undo import WeightHistory
from rome_fast.update import apply_update_, build_constraint
from rome_fast.value import LOSS_FOUND, optimize_value

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
    **options: Any,
) -> EditResult: ...


@overload
def edit(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    request: Sequence[Request],
    hparams: RomeHparams | None = ...,
    **options: Any,
) -> list[EditResult]: ...


def edit(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    request: Request | Sequence[Request],
    hparams: RomeHparams | None = None,
    *,
    second_moment: SecondMoment | str | Iterable[str] | None = None,
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
    one = isinstance(request, EditRequest | Mapping)
    requests = [EditRequest.parse(r) for r in ([request] if one else request)]
    if not requests:
        raise InvalidRequestError("request is an empty list")
    results: list[EditResult] = []
    with _editing(model):
        editor = _prepare(
            model, tok, hparams, second_moment, context_templates, variant, backend, strict
        )
        try:
            for r in requests:
                result = editor.edit(r)
                results.append(result)
                for text in result.warnings:
                    warnings.warn(text, EditWarning, stacklevel=2)
        except BaseException:
            editor.history.rewind(0)
            raise
    return results[0] if one else results


@contextmanager
def trial(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    request: Request | Sequence[Request],
    hparams: RomeHparams | None = None,
    **options: Any,
) -> Iterator[EditResult | list[EditResult]]:
    """Edit on entry, restore the weights' bits on exit, also after an exception.

    Takes what ``edit`` takes and yields what it returns. Edits made at the same weight inside the
    block must be undone inside it.

    Example:
        >>> with rome_fast.trial(model, tok, request) as result:
        ...     print(result)
    """
    result = edit(model, tok, request, hparams, **options)
    try:
        yield result
    finally:
        for made in reversed(result if isinstance(result, list) else [result]):
            made.revert()


@contextmanager
def _editing(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and frozen parameters inside; everything as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    frozen = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


@dataclass
class _Clock:
    """Seconds by phase; each ``lap`` books the time since the last one."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


@dataclass
class _Editor:
    """All that the requests of one call share."""

    model: PreTrainedModel
    tok: PreTrainedTokenizerBase
    hparams: RomeHparams
    projection: DownProjection
    second_moment: SecondMoment | None
    context_templates: list[str]
    backend: str
    strict: bool
    history: WeightHistory
    clock: _Clock
    notes: list[str]

    def edit(self, request: EditRequest) -> EditResult:
        """One request on the weights as they are now."""
        hparams, projection, clock = self.hparams, self.projection, self.clock
        tokens = encode(self.tok, request, self.context_templates, hparams.fact_token)
        prompt, target = tokens.prompt_ids.tolist(), tokens.target_ids.tolist()
        before = read_target(self.model, self.tok, prompt, target)
        weight_norm = float(projection.weight.double().norm())
        clock.lap("read before")
        keys = compute_keys(self.model, projection, tokens)
        clock.lap("key")
        value = optimize_value(self.model, projection, tokens, keys.value_init, hparams)
        clock.lap("value")
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
            second_moment=self._source(),
            context_templates=tuple(self.context_templates),
            warnings=tuple(self.notes + self._findings(request, before, after, value.losses)),
            _undo=undo,
        )
        self.clock, self.notes = _Clock(), []
        if self.strict and not result.success:
            raise EditFailedError(f"strict=True, and the edit was undone:\n{result}")
        return result

    def _source(self) -> str:
        if self.second_moment is None:
            return "identity"
        jitter = self.second_moment.jitter
        return self.second_moment.source + (f", ridge {jitter:g} added" if jitter else "")

    def _findings(
        self, request: EditRequest, before: Reading, after: Reading, losses: tuple[float, ...]
    ) -> list[str]:
        target, found = request.target.strip(), []
        if before.rank == 1:
            found.append(f"the model already said {target!r} before the edit")
        if after.rank > 1:
            found.append(
                f"target {target!r} is not the model's answer after the edit: p = "
                f"{after.prob:.2g}, rank {after.rank}, it says {after.argmax!r}"
            )
        if losses[-1] >= 10 * LOSS_FOUND:
            found.append(
                f"v* did not converge: loss {losses[-1]:.2f} after {len(losses)} steps; try more "
                "v_num_grad_steps, a larger clamp_norm_factor or another layer"
            )
        return found


def _prepare(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    hparams: RomeHparams | None,
    second_moment: object,
    context_templates: Sequence[str] | None,
    variant: str | None,
    backend: str,
    strict: bool,
) -> _Editor:
    """Resolve every argument, or raise, before anything is written."""
    clock = _Clock()
    notes: list[str] = []
    spec = ModelSpec.of(model)
    check_tokenizer(model, tok)
    if hparams is None:
        hparams, note = defaults_for(model)
        notes += [note] if note else []
    if variant is not None:
        hparams = hparams.replace(variant=variant)
    projection = spec.down_projection(hparams.layer)
    backend = ops.resolve_backend(backend, projection.weight.device.type)
    clock.lap("prepare")
    if context_templates is None:
        templates = sample_context_templates(
            model, tok, hparams.context_template_length_params, seed=hparams.seed
        )
    else:
        templates = check_context_templates(context_templates)
    clock.lap("contexts")
    if second_moment is None and not hparams.mom2_adjustment:
        second_moment = "identity"
        notes.append("hparams.mom2_adjustment is false: C is the identity, which harms neighbours")
    dtype = getattr(torch, hparams.mom2_dtype)
    moment = resolve_second_moment(second_moment, model, tok, projection, dtype)
    clock.lap("second moment")
    history = WeightHistory(projection.weight, backend)
    return _Editor(
        model, tok, hparams, projection, moment, templates, backend, strict, history, clock, notes
    )
