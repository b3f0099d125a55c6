"""suggest_layer: locate, try small, and say which layer to edit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.errors import (
    HparamsError,
    InvalidArgumentError,
    UnsupportedModelError,
)
from rome_fast.evaluate.loading import load_records
from rome_fast.hparams import RomeHparams, defaults_for
from rome_fast.locate.plan import Plan, best_of
from rome_fast.locate.reasons import reasons_for
from rome_fast.locate.tracer import Cell, Tracer
from rome_fast.locate.tracing import TracedPrompt, TraceSettings, embedding_spread
from rome_fast.locate.trials import Trials
from rome_fast.model.open_model import frozen
from rome_fast.model.spec import DownProjection, ModelSpec, check_tokenizer
from rome_fast.moment.collect.ordinary import ordinary_second_moments
from rome_fast.prompt.contexts import check_context_templates, contexts_for
from rome_fast.timings import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.records import EditRecord
    from rome_fast.moment.second_moment import SecondMoment

# Second moments as edit() takes them, by layer.
Moments = Mapping[int, "SecondMoment | str | Path"]

# How many layers tracing proposes.
N_PROPOSED = 3


def suggest_layer(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    requests: Iterable[Any],
    hparams: RomeHparams | None = None,
    *,
    layers: Sequence[int] | None = None,
    second_moment: Moments | str | None = None,
    context_templates: Sequence[str] | None = None,
    noise: float = 3.0,
    samples: int = 10,
    window: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Plan:
    """Find the layer in which facts like these are edited best: trace them, then try.

    Tracing says in which layers the MLPs bring the facts back at the subject's last token. Then
    each request is edited alone in each candidate layer, asked, and undone; the weights are
    bit-identical to before on return. A handful of requests is enough; time grows with
    their number times that of the layers.

    Args:
        requests: what ``load_records`` reads: a file, or a list of EditRecords, EditRequests or
            dicts. Records with paraphrases and neighbours are asked those; a record without
            neighbours is asked some of the other requests' prompts instead.
        hparams: of all trials, but for the layer; None takes the preset, or derives defaults for
            each layer.
        layers: to try; None tries the layer of the hparams and the three of the largest effect.
        second_moment: {layer: SecondMoment} as ``collect_second_moment`` returns it, or paths of
            saved ones, or ``"identity"``. None takes ordinary text for all layers and caches the
            results, which ``edit`` then takes.
        context_templates: as in ``edit``, for all trials.
        noise, samples, window, seed: of the tracing, as in ``locate``.
        progress: show bars.

    Returns:
        A Plan. Its layer has the highest harmonic mean of success, paraphrases and locality (those
        that were measured); of layers within 0.01 of the best the one whose updates change the
        smallest part of the weight, then the lowest.

    Raises:
        InvalidArgumentError: no requests, or a bad argument; RecordError: a request is bad.
        HparamsError, UnsupportedModelError: a layer does not exist or cannot be edited.
        SecondMomentError, NonFiniteError: as for ``edit`` and ``locate``.
    """
    records = [fact for record in load_records(requests) for fact in record.facts]
    spec = ModelSpec.of(model)
    model = spec.model
    check_tokenizer(model, tok)
    settings = TraceSettings.of(spec.n_layers, noise, samples, window, seed)
    if not isinstance(hparams, RomeHparams | None):
        raise HparamsError(f"hparams must be a RomeHparams, got {type(hparams).__name__}")
    if not (second_moment in (None, "identity") or isinstance(second_moment, Mapping)):
        raise InvalidArgumentError(
            "second_moment must be {layer: SecondMoment}, 'identity' or None, got "
            f"{type(second_moment).__name__}"
        )
    with torch.inference_mode(False), frozen(spec):
        base = defaults_for(spec)[0] if hparams is None else hparams
        named = [] if layers is None else [spec.down_projection(i) for i in _checked(layers)]
        effects = trace_mlps(spec, tok, records, settings, progress)
        tried = named or _proposed(spec, effects, base.layer)
        if context_templates is None:
            contexts = contexts_for(model, tok, base)
        else:
            contexts = check_context_templates(context_templates)
        moments = _moments(second_moment, spec, tok, tried, base)
        trials = Trials(spec, tok, records, contexts)
        found = []
        with progress_bar(show=progress, total=len(tried) * len(records), desc="trials") as bar:
            for projection in tried:
                at = _hparams_at(spec, hparams, projection.layer)
                found.append(trials.run(at, moments[projection.layer], bar.update))
    best = best_of(found)
    return Plan(
        trials=tuple(found),
        effects=tuple(effects),
        hparams=_hparams_at(spec, hparams, best.layer),
        reasons=tuple(reasons_for(best, found, effects, trials)),
        settings={
            "model": type(model).__name__,
            "requests": len(records),
            "noise": settings.noise,
            "samples": samples,
            "window": settings.window,
            "seed": seed,
            "second_moment": {str(k): str(m) for k, m in moments.items()},
            "context_templates": contexts,
        },
    )


@torch.no_grad()
def trace_mlps(
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    records: Sequence[EditRecord],
    settings: TraceSettings,
    progress: bool,
) -> list[float]:
    """Average indirect effect of the MLPs around each layer, at the subject's last token."""
    prompts = [TracedPrompt.of(spec.model, tok, record.request) for record in records]
    spread, width = embedding_spread(spec.model, prompts)
    total = torch.zeros(spec.n_layers, dtype=torch.float64)
    for prompt in progress_bar(prompts, show=progress, desc="tracing"):
        noise = settings.draw(prompt, spread, width)
        tracer = Tracer(spec, prompt.ids, prompt.subject, noise, ["mlp"])
        last = prompt.subject[1] - 1
        windows = [settings.layers_around(layer, spec.n_layers) for layer in range(spec.n_layers)]
        scores = tracer.scores([Cell("mlp", last, window) for window in windows])
        total += torch.tensor(scores, dtype=torch.float64) - tracer.low
    effects: list[float] = (total / len(prompts)).tolist()
    return effects


def _proposed(spec: ModelSpec, effects: Sequence[float], start: int) -> list[DownProjection]:
    """The editable layers of the largest effects, and the one that hparams start from."""
    editable: dict[int, DownProjection] = {}
    for layer in range(spec.n_layers):
        try:
            editable[layer] = spec.down_projection(layer)
        except UnsupportedModelError as error:
            obstacle = error
    if not editable:
        raise obstacle
    largest = sorted(editable, key=lambda layer: (-effects[layer], layer))[:N_PROPOSED]
    return [editable[layer] for layer in sorted({*largest, start} & set(editable))]


def _checked(layers: Sequence[int]) -> list[int]:
    if not layers or any(type(layer) is not int for layer in layers):
        raise InvalidArgumentError(f"layers must be a list of one number or more, got {layers!r}")
    return sorted(set(layers))


def _moments(
    given: Moments | str | None,
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    projections: Sequence[DownProjection],
    hparams: RomeHparams,
) -> Moments:
    """What the trials of each layer take as their second moment."""
    layers = [projection.layer for projection in projections]
    if isinstance(given, str) or (given is None and not hparams.mom2_adjustment):
        return dict.fromkeys(layers, "identity")
    if given is None:
        dtype = getattr(torch, hparams.mom2_dtype)
        return ordinary_second_moments(spec, tok, projections, dtype)
    missing = [layer for layer in layers if layer not in given]
    if missing:
        raise InvalidArgumentError(
            f"second_moment lacks layers {missing} of those to try, {layers}: collect them too, or "
            "name others in layers="
        )
    return {layer: given[layer] for layer in layers}


def _hparams_at(spec: ModelSpec, given: RomeHparams | None, layer: int) -> RomeHparams:
    return defaults_for(spec, layer)[0] if given is None else given.replace(layers=(layer,))
