"""The second moment without any text: from what the model itself writes, cached on disk.

Sampled text follows the distribution of keys that the model sees, and needs no download.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import torch

from rome_fast.errors import SecondMomentError
from rome_fast.model.spec import DownProjection, ModelSpec, max_positions
from rome_fast.moment.collect.collector import collect_second_moment
from rome_fast.moment.collect.convergence import TOLERANCE
from rome_fast.moment.provenance import provenance
from rome_fast.moment.second_moment import SecondMoment
from rome_fast.prompt.contexts import sample_ids
from rome_fast.prompt.ids import text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LENGTH = 64
_ROWS = 64


def sampled_second_moment(
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    projection: DownProjection,
    dtype: torch.dtype = torch.float32,
    n_texts: int | None = None,
) -> SecondMoment:
    """Second moment of text sampled from the model until it converges; cached.

    ``n_texts`` bounds how many texts of 64 tokens are taken, converged or not.

    The cache (``$ROME_FAST_CACHE``, else ``rome_fast`` in the platform's cache folder) is keyed
    by everything that determines a key: configuration, weights up to the edited matrix, layer,
    tokenizer and dtype. The layers above only choose the words: a model that was edited or tuned
    there shares the file.

    Raises:
        SecondMomentError: the cached file is damaged; the message names it.
    """
    if n_texts is None:
        return sampled_second_moments(spec, tok, [projection], dtype)[projection.layer]
    converged = _cache_path(spec, tok, projection, dtype)
    if converged.exists() and (moment := _load(converged)).count <= n_texts * _LENGTH:
        return moment
    bounded = _cache_path(spec, tok, projection, dtype, n_texts)
    if bounded.exists():
        return _load(bounded)
    texts = islice(sampled_documents(spec.model, tok), n_texts)
    moment = _collect(spec, tok, texts, [projection.layer], dtype)[projection.layer]
    # If it converged within the bound, it is what would have been collected without one.
    _save(moment, converged if moment.info["convergence"]["converged"] else bounded)
    return moment


def sampled_second_moments(
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    projections: Sequence[DownProjection],
    dtype: torch.dtype = torch.float32,
) -> dict[int, SecondMoment]:
    """The same for several layers, from one pass over one text for those that are not cached.

    The pass ends when all of them have converged, so a layer may get more keys than on its own.
    """
    paths = {p.layer: _cache_path(spec, tok, p, dtype) for p in projections}
    cached = {layer: _load(path) for layer, path in paths.items() if path.exists()}
    missing = [layer for layer in paths if layer not in cached]
    if not missing:
        return cached
    fresh = _collect(spec, tok, sampled_documents(spec.model, tok), missing, dtype)
    for layer, moment in fresh.items():
        _save(moment, paths[layer])
    return {**cached, **fresh}


def _collect(
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    texts: Iterator[list[int]],
    layers: Sequence[int],
    dtype: torch.dtype,
) -> dict[int, SecondMoment]:
    source = "text sampled from the model"
    return collect_second_moment(spec.model, tok, texts, layers, dtype=dtype, source=source)


def _save(moment: SecondMoment, path: Path) -> None:
    try:
        moment.save(path)
    except OSError as error:
        moment.source += f", not cached ({error}; set ROME_FAST_CACHE)"


def _load(path: Path) -> SecondMoment:
    try:
        moment = SecondMoment.load(path)
    except SecondMomentError as error:
        raise SecondMomentError(f"{error}; delete this file of the cache") from error
    moment.source += ", cached"
    return moment


def sampled_documents(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, seed: int = 0
) -> Iterator[list[int]]:
    """Endless texts of 64 tokens, drawn at temperature 1; with BOS if the tokenizer adds it."""
    generator = torch.Generator().manual_seed(seed)
    bos = _adds_bos(tok)
    length = min(_LENGTH, max_positions(model) or _LENGTH) - len(bos)
    while True:
        for row in sample_ids(model, tok, _ROWS, length, generator=generator).tolist():
            yield bos + row


def cache_dir() -> Path:
    """``$ROME_FAST_CACHE``, else ``rome_fast`` in the platform's cache folder."""
    chosen = os.environ.get("ROME_FAST_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("rome_fast", appauthor=False)


def _cache_path(
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    projection: DownProjection,
    dtype: torch.dtype,
    *bounds: int,
) -> Path:
    key = [provenance(spec, tok, projection), str(dtype), TOLERANCE, _LENGTH, *bounds]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "second_moments" / f"{digest[:32]}.safetensors"


def _adds_bos(tok: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts before every text: BOS, or nothing (GPT-2)."""
    ids = text_ids(tok, "a")
    return ids[:1] if ids[0] == tok.bos_token_id else []
