"""The second moment of an edit that was given none: of ordinary text that ships with the package.

A few keys a dimension of any text serve an edit as well as a hundred times as many of the model's
own, and a sequence of edits wants more of them (docs/second_moments.md); nothing is sampled and
nothing is fetched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rome_fast.cache import cache_dir
from rome_fast.errors import SecondMomentError, SecondMomentWarning, warn
from rome_fast.model.spec import DownProjection, ModelSpec
from rome_fast.moment.collect.collection import ENOUGH_KEYS
from rome_fast.moment.collect.collector import collect_second_moment
from rome_fast.moment.provenance import provenance
from rome_fast.moment.second_moment import SecondMoment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Paragraphs in English and Chinese, and code, one a line, in an order drawn once. Another text
# gives other bits to every edit that is given no second moment: it stays as it is.
ORDINARY_TEXT = Path(__file__).with_name("ordinary_text.txt")
LENGTH = 256


def ordinary_second_moment(
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    projection: DownProjection,
    dtype: torch.dtype = torch.float32,
    keys_per_dim: int = ENOUGH_KEYS,
) -> SecondMoment:
    """Second moment of ordinary text at one layer, or of as much of it as there is; cached.

    The cache is keyed by everything that determines a key: configuration, weights up to the edited
    matrix, layer, tokenizer, dtype and text.

    Raises:
        SecondMomentError: the cached file is damaged; the message names it.
    """
    return ordinary_second_moments(spec, tok, [projection], dtype, keys_per_dim)[projection.layer]


def ordinary_second_moments(
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    projections: Sequence[DownProjection],
    dtype: torch.dtype = torch.float32,
    keys_per_dim: int = ENOUGH_KEYS,
) -> dict[int, SecondMoment]:
    """The same for several layers: one pass for those of one width that are not cached."""
    paths = {p.layer: _cache_path(spec, tok, p, dtype, keys_per_dim) for p in projections}
    found = {layer: _load(path) for layer, path in paths.items() if path.exists()}
    # How many keys a layer gets must not depend on which others are asked for with it.
    missing: dict[int, list[int]] = {}
    for p in projections:
        if p.layer not in found:
            missing.setdefault(p.d_key, []).append(p.layer)
    for d_key, layers in missing.items():
        fresh = collect_second_moment(
            *(spec.model, tok, ORDINARY_TEXT, layers),
            tokens=keys_per_dim * d_key,
            max_length=LENGTH,
            dtype=dtype,
            source="ordinary text",
            title=f"first {'edit' if keys_per_dim == ENOUGH_KEYS else 'Session'} of this model: "
            "text for C, once",
        )
        for layer, moment in fresh.items():
            _save(moment, paths[layer])
        found |= fresh
    return found


def _save(moment: SecondMoment, path: Path) -> None:
    try:
        moment.save(path)
    except OSError as error:
        text = f"C of ordinary text is not cached ({error}): set ROME_FAST_CACHE to a folder"
        warn(text, SecondMomentWarning)


def _load(path: Path) -> SecondMoment:
    try:
        moment = SecondMoment.load(path)
    except SecondMomentError as error:
        raise SecondMomentError(f"{error}; delete this file of the cache") from error
    moment.is_cached = True
    return moment


def _cache_path(
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    projection: DownProjection,
    dtype: torch.dtype,
    keys_per_dim: int,
) -> Path:
    read = [keys_per_dim, LENGTH, text_hash()]
    key = [provenance(spec, tok, projection), str(dtype), *read]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "second_moments" / f"{digest[:32]}.safetensors"


@cache
def text_hash() -> str:
    return hashlib.sha256(ORDINARY_TEXT.read_bytes()).hexdigest()
