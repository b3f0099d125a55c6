"""What editing needs to know of a Hugging Face decoder: its blocks, its widths, its matrices.

All of it is found by structure (structure.py); ``config.model_type`` only selects tuned defaults.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rome_fast.errors import HparamsError, TokenizerMismatchError, UnsupportedModelError
from rome_fast.model.structure import down_projections, find_blocks, is_conv1d, routed_experts
from rome_fast.model.weights import check_weight
from rome_fast.model.wrappers import base_modules, inner, plain_name, unwrapped

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class DownProjection:
    """The matrix that an edit writes to.

    Attributes:
        name: path of the module in the plain model; the weight is ``name + ".weight"``.
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


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """The parts of a decoder that editing needs: a snapshot, taken by ``of``.

    Attributes:
        model: the transformers model, without what torch.compile or PEFT put around it.
        blocks_name: path of the list of blocks in it.
        d_model: width of the residual stream.
        modules: all of its modules by path, an adapter's included; one that stands in several
            places under each of its paths.
    """

    model: PreTrainedModel
    blocks_name: str
    blocks: tuple[nn.Module, ...]
    d_model: int
    modules: Mapping[str, nn.Module]

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelSpec:
        """Find the text decoder's blocks, also inside a wrapper or a multimodal model.

        Raises:
            UnsupportedModelError: no list of blocks and token embedding was found, or the model
                has a prompt-learning adapter.
        """
        if isinstance(model, nn.Module):
            model = unwrapped(model)
        kind = type(model).__name__
        # Base models without a head, masked and encoder-decoder models cannot continue a prompt.
        if not isinstance(model, nn.Module) or not getattr(model, "can_generate", bool)():
            raise UnsupportedModelError(
                f"model must be a Hugging Face decoder with a language-model head, got {kind}"
            )
        if model.get_output_embeddings() is None:
            raise UnsupportedModelError(f"{kind} does not say which module its output head is")
        if model.config.is_encoder_decoder:
            raise UnsupportedModelError(f"{kind} is an encoder-decoder; a decoder is needed")
        name, found = find_blocks(model)
        # The embeddings may have another width (OPT-350m).
        d_model = getattr(text_config(model), "hidden_size", None)
        if d_model is None:
            raise UnsupportedModelError(f"the configuration of {kind} has no hidden_size")
        # children() would leave out a block that stands in a second place.
        blocks = tuple(map(inner, found))
        return cls(
            model, name, blocks, int(d_model), dict(model.named_modules(remove_duplicate=False))
        )

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """``named_parameters()`` of the model by path; tied ones once, under the first path."""
        return self._tensors("_parameters")

    @cached_property
    def buffers(self) -> dict[str, Tensor]:
        """``named_buffers()`` of the model."""
        return self._tensors("_buffers")

    @cached_property
    def block_of(self) -> dict[str, int | None]:
        """The block that each parameter lies in; None for those outside all blocks."""
        found = {name: self._in_block.match(plain_name(name)) for name in self.parameters}
        return {name: match and int(match[1]) for name, match in found.items()}

    def layers_of(self, weight: Tensor) -> list[int]:
        """The layers that hold a matrix; several where they share it, or a module with it."""
        holders = (
            self._in_block.match(plain_name(name))
            for name, module in self.modules.items()
            if any(parameter is weight for parameter in module._parameters.values())
        )
        return [int(match[1]) for match in holders if match]

    @cached_property
    def _in_block(self) -> re.Pattern[str]:
        return re.compile(rf"{re.escape(self.blocks_name)}\.(\d+)\.")

    def _tensors(self, kind: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for path, module in self.modules.items():
            for name, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[f"{path}.{name}" if path else name] = tensor
        return found

    @property
    def dense_layers(self) -> list[int]:
        """The layers without routed experts."""
        return [layer for layer, block in enumerate(self.blocks) if not routed_experts(block)]

    def down_projection(self, layer: int, shared_expert: bool = False) -> DownProjection:
        """The down-projection of block ``layer`` (0-based), checked to be editable.

        Args:
            shared_expert: take that of the expert which all tokens share, in a mixture-of-experts
                layer.

        Raises:
            HparamsError: the model has no such layer, or ``shared_expert`` names a dense one.
            UnsupportedModelError: the layer has no dense down-projection, or it is offloaded or
                sharded; a QuantizedWeightError where it is quantised.
            NonFiniteError: the weight holds NaN or infinity.
        """
        if not 0 <= layer < self.n_layers:
            raise HparamsError(
                f"hparams.layers names layer {layer}, but {type(self.model).__name__} has layers "
                f"0 to {self.n_layers - 1}"
            )
        name, module = self._only_projection(layer, shared_expert)
        layout = "in_out" if is_conv1d(module) else "out_in"
        projection = DownProjection(f"{self.blocks_name}.{layer}.{name}", module, layer, layout)
        check_weight(f"{projection.name}.weight", module, self.model)
        return projection

    def _only_projection(self, layer: int, shared_expert: bool) -> tuple[str, nn.Module]:
        block, where = self.blocks[layer], f"{type(self.model).__name__} layer {layer}"
        is_mixture = bool(routed_experts(block))
        if shared_expert and not is_mixture:
            raise HparamsError(
                f"hparams.shared_expert is true, but {where} has no experts, it is dense"
            )
        found = down_projections(block, self.d_model)
        if is_mixture and not (shared_expert and found):
            dense = ", ".join(map(str, self.dense_layers)) or "none"
            said = f"{where} is a mixture of experts, and ROME is defined for one dense matrix"
            if found:
                remedy = "its shared expert can be edited with hparams.shared_expert=True"
            else:
                remedy = "it has no shared expert"
            raise UnsupportedModelError(f"{said}; {remedy}. Dense layers: {dense}.")
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
        return found[0]

    def mlp(self, layer: int) -> nn.Module | None:
        """A block's MLP module; None for a mixture of experts, or an MLP without its own module."""
        block = self.blocks[layer]
        if routed_experts(block):
            return None
        for name, _ in down_projections(block, self.d_model):
            parent = name.rpartition(".")[0]
            return dict(base_modules(block))[parent] if parent else None
        return None


def check_tokenizer(model: PreTrainedModel, tok: PreTrainedTokenizerBase) -> None:
    """Raise TokenizerMismatchError unless the tokenizer's ids are the model's.

    Models pad their embedding up to a round size, so a somewhat smaller tokenizer is normal; one
    that covers less than half of the rows belongs to another model. Another model's tokenizer of
    the same size is not detected.
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
    limit = getattr(text_config(model), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def text_config(model: PreTrainedModel) -> Any:
    """The configuration of the text decoder, which is a part of a multimodal model's."""
    return model.config.get_text_config(decoder=True)


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids must lie: the device of the token embedding.

    For an offloaded embedding it is the CPU: hooks move the ids from there.
    """
    device = _embedding(model).device
    return torch.device("cpu") if device.type == "meta" else device


def _embedding(model: PreTrainedModel) -> Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight
