"""What a second moment belongs to: hashes of everything that a key depends on.

Each part has a field of its own, so that a refusal can say which one differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.model.hashes import (
    config_hash,
    rounded_hash,
    tokenizer_hash,
    versions,
    weights_hash,
)
from rome_fast.model.spec import embedding_rows
from rome_fast.model.stored import stored_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rome_fast.model.spec import DownProjection, ModelSpec

# Fields that have to agree, and what they are called in an error. The tokenizer is not among
# them: it decides which keys were seen, not what a key is.
_BINDING = {
    "d_key": "d_key",
    "module": "the module",
    "config": "the configuration (hash)",
    "weights_dtype": "the dtype of the weights",
    "weights": "the weights below the layer (hash)",
}
_COUNTED = ("tokens", "sample_size")
_OF_ONE_PART = {"convergence", *_COUNTED}  # the first is of files up to 0.2


def provenance(
    spec: ModelSpec, tok: PreTrainedTokenizerBase, projection: DownProjection
) -> dict[str, Any]:
    """The fields that a file keeps, JSON-able; equal for equal keys of equal texts."""
    vocabulary = embedding_rows(spec.model)
    own = stored_dtype(projection.weight)
    return {
        **_of_model(spec, projection),
        "tokenizer": tokenizer_hash(tok),
        "vocabulary": vocabulary,
        "rounded": {
            str(dtype).removeprefix("torch."): rounded_hash(spec, projection, dtype, vocabulary)
            # In this order: the bytes of a file are those of its twin.
            for dtype in dict.fromkeys((own, torch.float16, torch.bfloat16))
        },
    }


def same_but_rounded(
    info: Mapping[str, Any], spec: ModelSpec, projection: DownProjection
) -> str | None:
    """What the user should know where the model is the same in another dtype, or with more tokens.

    "" where no key differs; None where the model is another one.
    """
    vocabulary, rounded = info.get("vocabulary"), info.get("rounded", {})
    if vocabulary is None or vocabulary > embedding_rows(spec.model):
        return None
    here, there = stored_dtype(projection.weight), getattr(torch, info["weights_dtype"])
    coarser = max(here, there, key=lambda dtype: torch.finfo(dtype).eps)
    name = str(coarser).removeprefix("torch.")
    if rounded.get(name) != rounded_hash(spec, projection, coarser, vocabulary):
        return None
    if here == there:
        return ""
    return f"was collected on the {info['weights_dtype']} weights of this model: keys are rounded"


def differences(info: Mapping[str, Any], spec: ModelSpec, projection: DownProjection) -> list[str]:
    """How ``info`` disagrees with the model at this layer; a missing field counts as equal."""
    here = {**_of_model(spec, projection), "versions": versions()}
    return [
        f"{title} differs: {info[field]!s:.40} there, {here[field]!s:.40} here"
        for field, title in _conflicts(info, here)
    ]


def merge_conflicts(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The fields in which two second moments disagree so that their sum would mean nothing."""
    return [
        f"{title} differs: {first[field]!s:.40} and {second[field]!s:.40}"
        for field, title in _conflicts(first, second)
    ]


def _conflicts(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Fields that both have and that differ, with their titles.

    Versions of transformers write the same configuration differently: its hashes are compared only
    if both come from one version.
    """
    written_by = [info.get("versions", {}).get("transformers") for info in (first, second)]
    return [
        (field, title)
        for field, title in _BINDING.items()
        if field in first
        and field in second
        and first[field] != second[field]
        and not (field == "config" and None not in written_by and len(set(written_by)) > 1)
    ]


def merged_info(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that hold for the sum."""
    info = {k: v for k, v in first.items() if second.get(k) == v and k not in _OF_ONE_PART}
    for counted in _COUNTED:
        if counted in first and counted in second:
            info[counted] = first[counted] + second[counted]
    return info


def _of_model(spec: ModelSpec, projection: DownProjection) -> dict[str, Any]:
    return {
        "model_type": str(spec.model.config.model_type),
        "layer": projection.layer,
        "module": projection.name,
        "d_key": projection.d_key,
        "config": config_hash(spec.model),
        "weights_dtype": str(stored_dtype(projection.weight)).removeprefix("torch."),
        "weights": weights_hash(spec, projection),
    }
