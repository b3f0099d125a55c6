"""Where in a Hugging Face decoder the edit goes, found by structure.

A decoder is a list of like blocks; in each block the MLP ends in one dense matrix that maps the
wide activation (the key) back to the residual stream (the value). No table of model names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from rome_fast.errors import (
    HparamsError,
    NonFiniteError,
    TokenizerMismatchError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Attention also ends in a matrix that writes to the residual stream; it is told from the MLP by
# the name of the submodule that holds it, the one part of a path that all families agree on.
_ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)
_EXPERTS = re.compile(r"(^|[._])(experts?|router)($|[._])")
_EDITABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class DownProjection:
    """The matrix that an edit writes to.

    Attributes:
        name: path of the module; the weight is ``name + ".weight"``.
        weight_layout: ``"out_in"`` ([d_value, d_key], nn.Linear) or ``"in_out"``
            ([d_key, d_value], GPT-2's Conv1D).
    """

    name: str
    module: nn.Module
    layer: int
    weight_layout: str

    @property
    def weight(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    @property
    def d_key(self) -> int:
        return int(self.weight.shape[1 if self.weight_layout == "out_in" else 0])

    @property
    def d_value(self) -> int:
        return int(self.weight.shape[0 if self.weight_layout == "out_in" else 1])


@dataclass(frozen=True)
class ModelSpec:
    """The parts of a decoder that editing needs: its blocks and its width."""

    model: PreTrainedModel
    blocks_name: str
    blocks: nn.ModuleList
    d_model: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelSpec:
        """Find the decoder's blocks.

        Raises:
            UnsupportedModelError: no list of blocks and token embedding was found.
        """
        kind = type(model).__name__
        # Base models without a head, masked and encoder-decoder models continue no prompt.
        if not isinstance(model, nn.Module) or not getattr(model, "can_generate", bool)():
            raise UnsupportedModelError(
                f"model must be a Hugging Face decoder with a language-model head, got {kind}"
            )
        if model.get_output_embeddings() is None:
            raise UnsupportedModelError(f"{kind} does not say which module its output head is")
        if model.config.is_encoder_decoder:
            raise UnsupportedModelError(f"{kind} is an encoder-decoder; a decoder is needed")
        lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
        lists = [(n, m) for n, m in lists if not _EXPERTS.search(n)]  # may outnumber the blocks
        if not lists:
            raise UnsupportedModelError(f"{kind} has no list of decoder blocks to edit")
        name, blocks = max(lists, key=lambda item: len(item[1]))
        # Not the width of the embeddings, which may be another (OPT-350m).
        return cls(model, name, blocks, int(model.config.hidden_size))

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    def down_projection(self, layer: int) -> DownProjection:
        """The down-projection of block ``layer`` (0-based), checked to be editable.

        Raises:
            HparamsError: the model has no such layer.
            UnsupportedModelError: no dense down-projection there, or one that is quantised,
                offloaded or sharded.
            NonFiniteError: the weight holds NaN or infinity.
        """
        if not 0 <= layer < self.n_layers:
            raise HparamsError(
                f"hparams.layers names layer {layer}, but {type(self.model).__name__} has layers "
                f"0 to {self.n_layers - 1}"
            )
        block = self.blocks[layer]
        where = f"{type(self.model).__name__} layer {layer}"
        if any(_EXPERTS.search(name) for name, _ in block.named_modules()):
            raise UnsupportedModelError(
                f"{where} is a mixture of experts, and ROME is defined for one dense matrix: name "
                "a dense layer in hparams.layers if the model has any"
            )
        found = [(n, m) for n, m in block.named_modules() if self._writes_to_stream(n, m)]
        if not found:
            raise UnsupportedModelError(
                f"{where} has no dense down-projection (a linear map from a wider activation to "
                f"the {self.d_model}-wide residual stream outside attention)"
            )
        if len(found) > 1:
            raise UnsupportedModelError(
                f"{where} has {len(found)} down-projections ({found[0][0]}, {found[1][0]}, ...), "
                "and ROME is defined for one dense matrix"
            )
        name, module = found[0]
        layout = "in_out" if type(module).__name__ == "Conv1D" else "out_in"
        projection = DownProjection(f"{self.blocks_name}.{layer}.{name}", module, layer, layout)
        _check_weight(projection)
        return projection

    def mlp(self, layer: int) -> nn.Module | None:
        """The module that is a block's MLP; None for experts, or without a module of its own."""
        block = self.blocks[layer]
        if any(_EXPERTS.search(name) for name, _ in block.named_modules()):
            return None
        for name, module in block.named_modules():
            if self._writes_to_stream(name, module):
                return block.get_submodule(name.rpartition(".")[0]) if "." in name else None
        return None

    def _writes_to_stream(self, name: str, module: nn.Module) -> bool:
        if _ATTENTION.search(name):
            return False
        weight = getattr(module, "weight", None)
        if type(module).__name__ == "Conv1D" and isinstance(weight, torch.Tensor):
            return bool(weight.shape[1] == self.d_model and weight.shape[0] > self.d_model)
        sizes = getattr(module, "in_features", 0), getattr(module, "out_features", 0)
        return bool(sizes[1] == self.d_model and sizes[0] > self.d_model)


def _check_weight(projection: DownProjection) -> None:
    name, weight = f"{projection.name}.weight", getattr(projection.module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dtype not in _EDITABLE or weight.dim() != 2:
        form = getattr(weight, "dtype", type(projection.module).__name__)
        raise UnsupportedModelError(
            f"{name} is quantised ({form}): load the model in float32, bfloat16 or float16"
        )
    if weight.is_meta:
        raise UnsupportedModelError(
            f"{name} is offloaded (meta device): load the model fully before editing"
        )
    if weight.is_inference():
        raise UnsupportedModelError(
            f"{name} was made under torch.inference_mode(): load the model outside of it"
        )
    if type(weight) not in (nn.Parameter, torch.Tensor):
        raise UnsupportedModelError(f"{name} is a {type(weight).__name__}, not a plain Parameter")
    if not torch.isfinite(weight).all():
        raise NonFiniteError(f"{name} already holds NaN or infinity: the model is damaged")


def check_tokenizer(model: PreTrainedModel, tok: PreTrainedTokenizerBase) -> None:
    """Raise TokenizerMismatchError unless the tokenizer's ids are the model's.

    Models pad their embedding up to a round size, so a somewhat smaller tokenizer is normal; one
    that covers less than half of the rows belongs to another model. One of the same size cannot
    be told apart.
    """
    if not callable(tok) or not hasattr(tok, "__len__"):
        raise TokenizerMismatchError(f"tok must be a tokenizer, got {type(tok).__name__}")
    rows, size = embedding_rows(model), len(tok)
    if size > rows or size * 2 < rows:
        raise TokenizerMismatchError(
            f"tok has {size} tokens but {type(model).__name__} has {rows} embedding rows: load "
            "the tokenizer that belongs to the model"
        )


def embedding_rows(model: PreTrainedModel) -> int:
    """How many token ids the model knows."""
    return len(_embedding(model))


def max_positions(model: PreTrainedModel) -> int | None:
    """How many tokens a text may have; None where the configuration sets no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return None if limit is None else int(limit)


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids must lie: the device of the token embedding."""
    return _embedding(model).device


def _embedding(model: PreTrainedModel) -> Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and no gradients to parameters inside; all as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    trainable = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training
