"""Texts -> SecondMoment, and what ``second_moment=`` of edit() may be.

Without any text the model's own samples stand in: they follow the distribution of keys that the
model sees, and need no download. They are cached per model, layer and size.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from rome_fast.contexts import sample_ids
from rome_fast.errors import InvalidArgumentError, SecondMomentError
from rome_fast.key import capture
from rome_fast.models import DownProjection, max_positions
from rome_fast.moments import SecondMoment
from rome_fast.tokens import pad_right, text_ids
from rome_fast.undo import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Keys per dimension of C: enough for the factor to be well conditioned (see docs/decisions.md).
KEYS_PER_DIM = 20
MAX_LENGTH = 512
_BATCH_TOKENS = 4096
_SAMPLED_LENGTH = 64
_FINGERPRINT_ELEMENTS = 65_536


def resolve_second_moment(
    given: object,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    projection: DownProjection,
    dtype: torch.dtype,
) -> SecondMoment | None:
    """Turn what the caller passed into a SecondMoment, or None for the identity.

    Args:
        given: a SecondMoment, the path of a saved one, an iterable of texts, ``"identity"``, or
            None for the cached or freshly sampled one.

    Raises:
        SecondMomentError: it belongs to another layer, size or model.
        InvalidArgumentError: none of the above.
    """
    if isinstance(given, str) and given == "identity":
        return None
    if given is None:
        return sampled_second_moment(model, tok, projection, dtype)
    if isinstance(given, SecondMoment):
        moment = given
    elif isinstance(given, str | Path):
        moment = SecondMoment.load(given)
        moment.source = f"file {Path(given).name} ({moment.source})"
    elif isinstance(given, Iterable):
        moment = collect_texts(model, tok, projection, given, dtype)
    else:
        raise InvalidArgumentError(
            "second_moment must be a SecondMoment, a path, an iterable of texts, 'identity' or "
            f"None, got {type(given).__name__}"
        )
    _check_fits(moment, model, projection)
    return moment


def _check_fits(moment: SecondMoment, model: PreTrainedModel, projection: DownProjection) -> None:
    if moment.d_key != projection.d_key:
        raise SecondMomentError(
            f"second_moment is of d_key {moment.d_key}, but {projection.name} has d_key "
            f"{projection.d_key}: it was collected for another model or layer"
        )
    made_for = moment.info.get("weight")
    if made_for is not None and made_for != projection.name:
        raise SecondMomentError(
            f"second_moment was collected at {made_for}, but the edit is at {projection.name}"
        )
    made_by = moment.info.get("model")
    if made_by is not None and made_by != model_fingerprint(model, projection):
        raise SecondMomentError(
            f"second_moment ({moment.source}) was collected on a model with other weights below "
            f"{projection.name}: collect it again on this one"
        )


def collect_texts(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    projection: DownProjection,
    texts: Iterable[str],
    dtype: torch.dtype = torch.float32,
) -> SecondMoment:
    """Second moment of the keys of all tokens of ``texts``.

    Each text is cut at 512 tokens, or at what the model takes if that is less.
    """
    moment = _empty(model, projection, dtype)
    n_texts = 0
    longest = min(MAX_LENGTH, max_positions(model) or MAX_LENGTH)
    for batch in _batches(_tokenized(tok, texts, longest)):
        n_texts += len(batch)
        _add_rows(moment, model, projection, batch)
    if not moment.count:
        raise SecondMomentError("second_moment: the iterable of texts holds no token")
    moment.source = f"{moment.count} keys of {n_texts} texts"
    return moment


def sampled_second_moment(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    projection: DownProjection,
    dtype: torch.dtype = torch.float32,
) -> SecondMoment:
    """Second moment of the keys of text that the model itself writes; cached on disk.

    20 keys per dimension, sampled without temperature in rows of 64 tokens, seeded. The cache
    (``$ROME_FAST_CACHE``, by default ``~/.cache/rome_fast``) is keyed by everything that
    determines a key: the weights up to the edited matrix, the layer, dtype and size.
    """
    n_keys = KEYS_PER_DIM * projection.d_key
    name = f"{model_fingerprint(model, projection)[:24]}-{n_keys}-{str(dtype)[6:]}.safetensors"
    path = cache_dir() / "second_moments" / name
    # A file that cannot be read is collected, and written, anew.
    with contextlib.suppress(SecondMomentError):
        moment = SecondMoment.load(path)
        moment.source += ", cached"
        return moment
    moment = _empty(model, projection, dtype)
    generator = torch.Generator().manual_seed(0)
    bos = _adds_bos(tok)
    length = min(_SAMPLED_LENGTH, max_positions(model) or _SAMPLED_LENGTH) - len(bos)
    n_rows = _BATCH_TOKENS // _SAMPLED_LENGTH
    title = f"second moment of layer {projection.layer}"
    with tqdm(total=n_keys, desc=title, unit="key", unit_scale=True) as bar:
        while moment.count < n_keys:
            ids = sample_ids(model, tok, n_rows, length, generator=generator)
            _add_rows(moment, model, projection, [bos + row for row in ids.tolist()])
            bar.update(min(ids.numel(), n_keys - bar.n))
    moment.source = f"{moment.count} keys of text sampled from the model"
    try:
        moment.save(path)
    except OSError as error:
        moment.source += f", not cached ({error}; set ROME_FAST_CACHE)"
    return moment


def _adds_bos(tok: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts before every text: BOS, or nothing (GPT-2)."""
    ids = text_ids(tok, "a")
    return ids[:1] if ids[0] == tok.bos_token_id else []


def model_fingerprint(model: PreTrainedModel, projection: DownProjection) -> str:
    """Hash of the configuration and of all that a key of this layer depends on.

    Left out are the blocks above and the edited weight itself, so edits at the layer keep it.
    Evenly spaced elements of each parameter stand for all of it: training, merging or editing a
    matrix changes nearly every element.
    """
    blocks = projection.name.split(f".{projection.layer}.")[0]
    above = re.compile(rf"{re.escape(blocks)}\.(\d+)\.")
    samples = []
    for name, parameter in model.named_parameters():
        block = above.match(name)
        if name == f"{projection.name}.weight" or (block and int(block[1]) > projection.layer):
            continue
        flat = parameter.detach().reshape(-1)
        samples.append(flat[:: -(-len(flat) // _FINGERPRINT_ELEMENTS) or 1])
    config = {k: v for k, v in model.config.to_diff_dict().items() if k != "transformers_version"}
    text = f"{fingerprint(*samples)} {json.dumps(config, sort_keys=True, default=str)}"
    return hashlib.sha256(text.encode()).hexdigest()


def cache_dir() -> Path:
    """``$ROME_FAST_CACHE``, else ``rome_fast`` in the user's cache folder."""
    chosen = os.environ.get("ROME_FAST_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rome_fast"


def _empty(model: PreTrainedModel, projection: DownProjection, dtype: torch.dtype) -> SecondMoment:
    if projection.weight.dtype == torch.float64:
        dtype = torch.float64
    moment = SecondMoment(projection.d_key, dtype=dtype, device=projection.weight.device)
    moment.info = {"model": model_fingerprint(model, projection), "weight": projection.name}
    return moment


def _add_rows(
    moment: SecondMoment,
    model: PreTrainedModel,
    projection: DownProjection,
    rows: list[list[int]],
) -> None:
    input_ids, attention_mask = pad_right(rows)
    keys, _ = capture(model, projection, input_ids, attention_mask)
    moment.add(keys, attention_mask.to(keys.device))


def _tokenized(
    tok: PreTrainedTokenizerBase, texts: Iterable[str], longest: int
) -> Iterator[list[int]]:
    for text in texts:
        if not isinstance(text, str):
            raise InvalidArgumentError(
                f"second_moment: texts must be strings, got {type(text).__name__}: {text!r:.80}"
            )
        ids = text_ids(tok, text)[:longest]
        if ids:
            yield ids


def _batches(rows: Iterable[list[int]]) -> Iterator[list[list[int]]]:
    """Rows in order, as many at a time as keep the padded batch within the token budget."""
    batch: list[list[int]] = []
    for row in rows:
        longest = max(len(row), *map(len, batch)) if batch else len(row)
        if batch and longest * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
