"""A model's parts, and what it does between them: found by structure and by running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rome_fast.model.open_model import frozen
from rome_fast.model.spec import ModelSpec
from rome_fast.model.wrappers import base_modules, inner
from rome_fast.probe.layers import LayerAnatomy, alike
from rome_fast.probe.running import factor_between, output_of, seen_at, token_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Far beyond any soft cap, and within float16.
_LARGE = 1e4


@dataclass(frozen=True)
class Anatomy:
    """What was found in a model.

    Attributes:
        name: of its class.
        n_parameters: tied ones once.
        blocks, embedding, head: paths of the list of blocks, of the token embedding and of the
            output head. final_norm: of what the head reads; "" where that is a block.
        rows: of the embedding, how many tokens it knows.
        entry: what the first block is given of an embedding, in words.
        tied: head and embedding are one tensor.
        logits: what becomes of the head's output, in words.
        layers: every layer.
    """

    name: str
    n_parameters: int
    blocks: str
    d_model: int
    embedding: str
    rows: int
    entry: str
    final_norm: str
    head: str
    tied: bool
    logits: str
    layers: tuple[LayerAnatomy, ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Anatomy:
        """Look at a model, and run a few tokens through it.

        Raises:
            UnsupportedModelError: as ``ModelSpec.of``.
        """
        spec = ModelSpec.of(model)
        with torch.inference_mode(False), frozen(spec):
            return cls._of_frozen(spec)

    @classmethod
    def _of_frozen(cls, spec: ModelSpec) -> Anatomy:
        model = spec.model
        table, head = inner(model.get_input_embeddings()), inner(model.get_output_embeddings())
        names = {id(module): name for name, module in base_modules(model)}
        return cls(
            name=type(model).__name__,
            n_parameters=sum(p.numel() for p in model.parameters()),
            blocks=spec.blocks_name,
            d_model=spec.d_model,
            embedding=names[id(table)],
            rows=len(_weight(table)),
            entry=_entry(spec, table),
            final_norm=_final_norm(spec, head, names),
            head=names[id(head)],
            tied=_weight(head) is _weight(table),
            logits=_logits(spec, head),
            layers=tuple(LayerAnatomy.of(spec, layer) for layer in range(spec.n_layers)),
        )

    def __str__(self) -> str:
        tied = ", tied to the embedding" if self.tied else ""
        rows = [
            ("embedding", f"{self.embedding}, {self.rows:,} tokens; {self.entry}"),
            ("blocks", f"{self.blocks}, {len(self.layers)} of width {self.d_model:,}"),
            *(
                (f"layer {first}" if first == last else f"layers {first}-{last}", str(layer))
                for first, last, layer in alike(self.layers)
            ),
            ("final norm", self.final_norm or "none"),
            ("head", f"{self.head}{tied}; {self.logits}"),
        ]
        head = f"{self.name}, {self.n_parameters:,} parameters"
        return "\n".join([head, *(f"  {name:<14}{text}" for name, text in rows)])


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _entry(spec: ModelSpec, table: nn.Module) -> str:
    """How the first block's input follows from the embedding: found by doubling the embedding."""
    embedded = seen_at(spec, table)
    first = spec.blocks[0]
    once = seen_at(spec, first, entering=True)
    twice = seen_at(spec, first, (table, lambda _, __, output: 2 * output), entering=True)
    if once.shape[-1] != embedded.shape[-1]:
        return f"projected to {once.shape[-1]:,} for the first block"
    factor = factor_between(twice - once, embedded)
    own = factor_between(embedded, _weight(table)[token_ids(spec)])
    if factor is None or own is None:
        return "normalised for the first block"
    scaled = "as it is" if abs(own * factor - 1) < 1e-3 else f"times {own * factor:.3g}"
    rest = (once - factor * embedded).float().norm()
    more = " and positions added" if rest > 1e-3 * once.float().norm() else ""
    return f"given to the first block {scaled}{more}"


def _final_norm(spec: ModelSpec, head: nn.Module, names: dict[int, str]) -> str:
    """The module whose output the head reads."""
    made: dict[int, str] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and not list(module.children()):
            made[output.data_ptr()] = names.get(id(module), "")

    leaves = [(m, note) for _, m in base_modules(spec.model) if m is not head]
    read = seen_at(spec, head, *leaves, entering=True)
    name = made.get(read.data_ptr(), "")
    return "" if name.startswith(f"{spec.blocks_name}.") else name


def _logits(spec: ModelSpec, head: nn.Module) -> str:
    """How the logits follow from the head's output: found by replacing it with constants."""

    def of(number: float) -> float:
        filled = output_of(spec, (head, lambda _, __, output: torch.full_like(output, number)))
        return float(filled.flatten()[0])

    small, large = of(1.0), of(_LARGE)
    if abs(large / _LARGE - small) > 1e-2 * abs(small):
        return f"its output is capped softly at {large:.3g}"
    return "its output is the logits" + ("" if abs(small - 1) < 1e-3 else f", times {small:.3g}")
