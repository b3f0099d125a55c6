"""The ``second_moment=`` argument of edit() -> a SecondMoment that fits the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import InvalidArgumentError, SecondMomentError, SecondMomentWarning, warn
from rome_fast.model.spec import DownProjection, ModelSpec
from rome_fast.moment.collect.collection import ENOUGH_KEYS
from rome_fast.moment.collect.collector import collect_second_moment
from rome_fast.moment.collect.ordinary import ordinary_second_moment
from rome_fast.moment.provenance import differences, same_but_rounded
from rome_fast.moment.second_moment import SecondMoment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def resolve_second_moment(
    given: object,
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    projection: DownProjection,
    dtype: torch.dtype,
    keys_per_dim: int = ENOUGH_KEYS,
) -> SecondMoment | None:
    """Turn what the caller passed into a SecondMoment, or None for the identity.

    Args:
        given: a SecondMoment, the path of a saved one (safetensors or the reference's .npz), an
            iterable of texts, ``"identity"``, or None for that of ordinary text.
        keys_per_dim: how much of that text, in keys a dimension.

    Raises:
        SecondMomentError: it belongs to another layer or model; the fields that differ are named.
            The same model in another dtype, or with tokens added, will do; rounding is warned of.
        InvalidArgumentError: none of the above.
    """
    if isinstance(given, str) and given == "identity":
        return None
    if given is None:
        return ordinary_second_moment(spec, tok, projection, dtype, keys_per_dim)
    if isinstance(given, SecondMoment):
        moment = given
    elif isinstance(given, Mapping):
        keys = ", ".join(map(repr, given))
        raise InvalidArgumentError(f"second_moment is a mapping: pass one of its values ({keys})")
    elif isinstance(given, torch.Tensor):
        raise InvalidArgumentError(
            "second_moment is a tensor: wrap it, SecondMoment.from_moment(tensor, count)"
        )
    elif isinstance(given, str | Path):
        moment = SecondMoment.load(given)
        moment.source = f"file {Path(given).name} ({moment.source})"
    elif isinstance(given, Iterable):
        moment = collect_second_moment(spec.model, tok, given, projection.layer, dtype=dtype)[
            projection.layer
        ]
    else:
        raise InvalidArgumentError(
            "second_moment must be a SecondMoment, a path, an iterable of texts, 'identity' or "
            f"None, got {type(given).__name__}"
        )
    _check_fits(moment, spec, projection)
    return moment


def _check_fits(moment: SecondMoment, spec: ModelSpec, projection: DownProjection) -> None:
    told = differences({"d_key": moment.d_key, **moment.info}, spec, projection)
    if not told:
        return
    remark = same_but_rounded(moment.info, spec, projection)
    if remark:
        warn(f"second_moment ({moment.source}) {remark}", SecondMomentWarning)
    if remark is None:
        raise SecondMomentError(
            f"second_moment ({moment.source}) was not collected for {projection.name} of this "
            f"model: {'; '.join(told)}. Collect it again on this one"
        )
