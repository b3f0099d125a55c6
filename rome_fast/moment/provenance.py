"""What a second moment belongs to: hashes of everything that a key depends on.

Each part has a field of its own, so that a refusal can say which one differs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rome_fast.errors import UnsupportedModelError
from rome_fast.model.wrappers import plain_name
from rome_fast.update.undo import fingerprint

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.model.spec import DownProjection

_ELEMENTS = 65_536
# Fields of a configuration that say nothing about the numbers that the layers compute.
_INERT = {
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
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
_OF_ONE_PART = {"convergence", *_COUNTED}


def provenance(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, projection: DownProjection
) -> dict[str, Any]:
    """The fields that a file keeps, JSON-able; equal for equal keys of equal texts."""
    return {**_of_model(model, projection), "tokenizer": tokenizer_hash(tok)}


def differences(
    info: Mapping[str, Any], model: PreTrainedModel, projection: DownProjection
) -> list[str]:
    """How ``info`` disagrees with the model at this layer; a field it lacks agrees."""
    here = {**_of_model(model, projection), "versions": versions()}
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

    transformers has written one and the same configuration in different ways: hashes of it are
    compared under one version only.
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
    """What holds for both together; what was measured on one part (convergence) does not."""
    info = {k: v for k, v in first.items() if second.get(k) == v and k not in _OF_ONE_PART}
    for counted in _COUNTED:
        if counted in first and counted in second:
            info[counted] = first[counted] + second[counted]
    return info


def _of_model(model: PreTrainedModel, projection: DownProjection) -> dict[str, Any]:
    return {
        "model_type": str(model.config.model_type),
        "layer": projection.layer,
        "module": projection.name,
        "d_key": projection.d_key,
        "config": config_hash(model),
        "weights_dtype": str(projection.weight.dtype).removeprefix("torch."),
        "weights": weights_hash(model, projection),
    }


def versions() -> dict[str, str]:
    """Of the libraries that made a file."""
    import transformers

    import rome_fast

    return {m.__name__: m.__version__ for m in (rome_fast, torch, transformers)}


def config_hash(model: PreTrainedModel) -> str:
    """Of all that the configuration says about the computation."""
    config = {k: v for k, v in model.config.to_diff_dict().items() if k not in _INERT}
    return _sha256(json.dumps(config, sort_keys=True, default=str))


def weights_hash(model: PreTrainedModel, projection: DownProjection) -> str:
    """Of the parameters that a key of this layer can depend on.

    Left out are the blocks above, what is registered after the blocks (final norm, head), and the
    edited weight itself, so edits at the layer keep it; adapters are not left out. Evenly spaced
    elements of each parameter stand for all of it: training, merging or editing a matrix changes
    nearly every element.

    Raises:
        UnsupportedModelError: one of them is offloaded.
    """
    blocks = projection.name.split(f".{projection.layer}.")[0]
    in_block = re.compile(rf"{re.escape(blocks)}\.(\d+)\.")
    chosen, behind_blocks = [], False
    for name, parameter in model.named_parameters():
        name = plain_name(name)
        block = in_block.match(name)
        behind_blocks |= bool(block)
        below = int(block[1]) <= projection.layer if block else not behind_blocks
        if not below or name == f"{projection.name}.weight":
            continue
        if parameter.is_meta:
            raise UnsupportedModelError(
                f"{name} is offloaded (meta device): load the blocks up to {projection.layer} fully"
            )
        chosen.append(parameter)
    return sampled_hash(chosen)


def model_hash(model: PreTrainedModel) -> str:
    """Of all parameters, in the way of ``weights_hash``, but for those that are offloaded."""
    return sampled_hash(p for p in model.parameters() if not p.is_meta)


def sampled_hash(parameters: Iterable[Tensor]) -> str:
    # A quantised tensor (torchao's) stands for numbers that it computes.
    plain = (p if type(p) in (nn.Parameter, torch.Tensor) else p.dequantize() for p in parameters)
    flat = (parameter.detach().reshape(-1) for parameter in plain)
    return fingerprint(*(x[:: -(-len(x) // _ELEMENTS) or 1] for x in flat))


def tokenizer_hash(tok: PreTrainedTokenizerBase) -> str:
    """Of vocabulary and rules; padding and truncation, which change in use, are left out."""
    backend = getattr(tok, "backend_tokenizer", None)
    if backend is None:
        return _sha256(json.dumps(sorted(tok.get_vocab().items())))
    rules = json.loads(backend.to_str())
    for transient in ("padding", "truncation"):
        rules.pop(transient, None)
    return _sha256(json.dumps(rules, sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
