"""Hashes of tensors, models and tokenizers, to tell whether two are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn

from rome_fast._version import __version__
from rome_fast.errors import UnsupportedModelError
from rome_fast.model.stored import as_stored
from rome_fast.model.wrappers import plain_name

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.model.spec import DownProjection, ModelSpec

_ELEMENTS, _FEW_ELEMENTS, _LOOKED_AT = 65_536, 4_096, 64
# By model and matrix, the state of the weights and their hash.
_known: WeakKeyDictionary[nn.Module, dict[str, tuple[Hashable, str]]] = WeakKeyDictionary()
# Fields of a configuration that do not change what the layers compute.
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


def fingerprint(*tensors: Tensor) -> str:
    """SHA-256 of the tensors' shapes, dtypes and bits, in logical order whatever the strides."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of the libraries that make a file."""
    import transformers

    libraries = {m.__name__: m.__version__ for m in (torch, transformers)}
    return {"rome_fast": __version__, **libraries}


def config_hash(model: PreTrainedModel, without: Collection[str] = ()) -> str:
    """Hash of the configuration's fields that affect the computation."""
    left_out = {*_INERT, *without}
    config = {k: v for k, v in model.config.to_diff_dict().items() if k not in left_out}
    return _sha256(json.dumps(config, sort_keys=True, default=str))


def weights_hash(spec: ModelSpec, projection: DownProjection) -> str:
    """Hash of the parameters that a key of this layer can depend on.

    Of each parameter only evenly spaced elements are hashed: training, merging or editing a matrix
    changes nearly every element. A hash is kept with the model until a parameter is written; a
    write through ``.data`` is seen where it changes one of some 64 elements of a parameter.

    Raises:
        UnsupportedModelError: one of them is offloaded.
    """
    chosen, known = _below(spec, projection), _known.setdefault(spec.model, {})
    state = _state(chosen)
    if state is None:
        return sampled_hash(chosen)
    if known.get(projection.name, ("", ""))[0] != state:
        known[projection.name] = state, sampled_hash(chosen)
    return known[projection.name][1]


def _state(parameters: Sequence[Tensor]) -> Hashable:
    """What is another once a parameter is written; None where that cannot be told at once.

    torch counts no writes through ``.data``: so a few numbers of each are looked at, too.
    """
    is_plain = all(type(p) in (nn.Parameter, torch.Tensor) for p in parameters)
    if not is_plain or len({p.device for p in parameters}) > 1:
        return None
    if any(p.is_inference() or not p.is_contiguous() for p in parameters):
        return None
    flat = [p.detach().view(-1) for p in parameters]
    looked_at = torch.cat([x[:: len(x) // _LOOKED_AT or 1].float() for x in flat])
    written = tuple((p.data_ptr(), p._version) for p in parameters)
    return written, fingerprint(looked_at)


def rounded_hash(
    spec: ModelSpec, projection: DownProjection, dtype: torch.dtype, vocabulary: int
) -> str:
    """Hash of what a key of this layer depends on, for all who differ by rounding or by new tokens.

    The parameters are taken in ``dtype``, and of the embedding its first ``vocabulary`` rows; the
    configuration without the size of the vocabulary.
    """
    embedding = spec.model.get_input_embeddings().weight
    chosen = [p[:vocabulary] if p is embedding else p for p in _below(spec, projection)]
    numbers = sampled_hash(chosen, _FEW_ELEMENTS, dtype)
    config = config_hash(spec.model, {"vocab_size"})
    return _sha256(f"{projection.name} {projection.d_key} {config} {numbers}")


def _below(spec: ModelSpec, projection: DownProjection) -> list[Tensor]:
    """Parameters that a key of this layer can depend on, adapters' included.

    Left out are the blocks above, what is registered after the blocks (final norm, head), and the
    edited weight itself with an adapter on it, so that edits at the layer keep the hash.
    """
    chosen, behind_blocks = [], False
    for name, parameter in spec.parameters.items():
        block = spec.block_of[name]
        behind_blocks |= block is not None
        below = not behind_blocks if block is None else block <= projection.layer
        own = plain_name(name).removeprefix(f"{projection.name}.")
        if not below or (own != plain_name(name) and own != "bias"):
            continue
        if parameter.is_meta:
            raise UnsupportedModelError(
                f"{plain_name(name)} is offloaded (meta device): load the blocks up to "
                f"{projection.layer} fully"
            )
        chosen.append(parameter)
    return chosen


def model_hash(spec: ModelSpec) -> str:
    """Hash of all parameters that are not offloaded, sampled as in ``weights_hash``."""
    return sampled_hash(p for p in spec.parameters.values() if not p.is_meta)


def sampled_hash(
    parameters: Iterable[Tensor], most: int = _ELEMENTS, dtype: torch.dtype | None = None
) -> str:
    """Hash of at most so many elements of each, in their own dtype or in another."""
    # A quantised tensor (torchao) is hashed by the numbers that it dequantises to.
    plain = (
        as_stored(p) if type(p) in (nn.Parameter, torch.Tensor) else p.dequantize()
        for p in parameters
    )
    flat = (parameter.detach().reshape(-1) for parameter in plain)
    sampled = (x[:: -(-len(x) // most) or 1] for x in flat)
    return fingerprint(
        *(x if dtype is None or not x.is_floating_point() else x.to(dtype) for x in sampled)
    )


def tokenizer_hash(tok: PreTrainedTokenizerBase) -> str:
    """Hash of vocabulary and rules, without padding and truncation, which change in use."""
    backend = getattr(tok, "backend_tokenizer", None)
    if backend is None:
        return _sha256(json.dumps(sorted(tok.get_vocab().items())))
    rules = json.loads(backend.to_str())
    for transient in ("padding", "truncation"):
        rules.pop(transient, None)
    return _sha256(json.dumps(rules, sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
