"""What a decoder is made of, found by its structure and by running it on a few tokens.

Nothing is read from names or from the configuration: what the model does to a vector that is put in
says which factors, norms and soft caps there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from rome_fast.dissect import Ends, try_layers
from rome_fast.errors import NonFiniteError, UnsupportedModelError
from rome_fast.models import DownProjection, ModelSpec, frozen
from rome_fast.structure import sizes
from rome_fast.wrappers import base_modules, inner

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LayerAnatomy:
    """One block's down-projection.

    Attributes:
        name: its path, with ``{}`` for the number of the block; "" where there is none to edit.
        weight_layout, d_key, d_value, bias, dtype, device: of its weight.
        gated: whether two matrices make the key, one of them by way of the activation.
        after: what is done to its output before it is added to the residual stream: "nothing",
            "times 0.22" or "a norm".
        parallel: whether the MLP sees nothing of its own block's attention.
        obstacle: why it cannot be edited, or "".
    """

    name: str = ""
    weight_layout: str = ""
    d_key: int = 0
    d_value: int = 0
    bias: bool = False
    dtype: str = ""
    device: str = ""
    gated: bool = False
    after: str = ""
    parallel: bool = False
    obstacle: str = ""

    def __str__(self) -> str:
        if self.obstacle:
            return f"cannot be edited: {self.obstacle}"
        residual = "beside attention" if self.parallel else "after attention"
        return (
            f"{self.name} [{self.d_key} -> {self.d_value}], {self.weight_layout}, "
            f"{'with' if self.bias else 'no'} bias, {self.dtype} on {self.device}; "
            f"{'gated' if self.gated else 'not gated'}, {residual}{_then(self.after)}"
        )


@dataclass(frozen=True)
class Anatomy:
    """The parts of a decoder.

    Attributes:
        model: its class.
        blocks, embedding, final_norm, head: paths; no final norm is "".
        before: what is done to an embedding before it enters the first block: "nothing", or
            "times 5.66", "plus positions", "a norm", "a projection", joined by commas.
        tied: whether head and embedding share their weight.
        after_head: what is done to the head's output: "nothing", "times 0.0625", "soft cap 30" or
            "unknown".
    """

    model: str
    blocks: str
    d_model: int
    embedding: str
    before: str
    final_norm: str
    head: str
    tied: bool
    after_head: str
    layers: tuple[LayerAnatomy, ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Anatomy:
        """Look at a model; two forwards of a few tokens, and nothing of it is changed.

        Raises:
            UnsupportedModelError: it is no decoder.
        """
        spec = ModelSpec.of(model)
        model = spec.model
        names = {id(module): name for name, module in base_modules(model)}
        table, head = (
            inner(m) for m in (model.get_input_embeddings(), model.get_output_embeddings())
        )
        with torch.no_grad(), frozen(model):
            ends = Ends.of(spec, table, head)
            layers = _layers(spec)
        return cls(
            model=type(model).__name__,
            blocks=spec.blocks_name,
            d_model=spec.d_model,
            embedding=names[id(table)],
            before=ends.before,
            final_norm="" if ends.final_norm is None else names[id(ends.final_norm)],
            head=names[id(head)],
            tied=head.weight is table.weight,
            after_head=ends.after_head,
            layers=tuple(layers),
        )

    def __str__(self) -> str:
        rows = [
            ("blocks", f"{self.blocks}, {len(self.layers)} of width {self.d_model}"),
            ("embedding", self.embedding + _then(self.before)),
            ("final norm", self.final_norm or "none"),
            ("head", f"{self.head}{', tied' if self.tied else ''}{_then(self.after_head)}"),
        ]
        alike: dict[str, list[int]] = {}
        for number, layer in enumerate(self.layers):
            alike.setdefault(str(layer), []).append(number)
        rows += [(f"layers {_ranges(numbers)}", said) for said, numbers in alike.items()]
        width = max(len(title) for title, _ in rows) + 2
        return "\n".join([self.model, *(f"  {title:<{width}}{said}" for title, said in rows)])


def _then(what: str) -> str:
    return "" if what == "nothing" else f", then {what}"


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] as "0-2, 5"."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _layers(spec: ModelSpec) -> list[LayerAnatomy]:
    """Every block by one forward: a row of its own for each thing that is tried in a block."""
    found, projections = [], {}
    for number in range(spec.n_layers):
        try:
            projections[number] = spec.down_projection(number)
            found.append(_of_weight(projections[number], spec))
        except (UnsupportedModelError, NonFiniteError) as error:
            what = str(error).partition(f" layer {number} ")[2]
            said = f"it {what}" if what else str(error)
            found.append(LayerAnatomy(obstacle=said.replace(f".{number}.", ".{}.")))
    ran = try_layers(spec, projections)
    for number in projections:
        if number in ran:
            after, parallel = ran[number]
            found[number] = replace(found[number], after=after, parallel=parallel)
        else:
            found[number] = LayerAnatomy(obstacle="it is not used on text alone")
    return found


def _of_weight(projection: DownProjection, spec: ModelSpec) -> LayerAnatomy:
    modules = dict(base_modules(spec.blocks[projection.layer]))
    path = projection.name.removeprefix(f"{spec.blocks_name}.{projection.layer}.")
    beside = [inner(m) for m in modules[path.rpartition(".")[0]].children()]
    wide = [shape[1] for m in beside if m is not projection.module and (shape := sizes(m))]
    weight = projection.weight
    return LayerAnatomy(
        name=f"{spec.blocks_name}.{{}}.{path}",
        weight_layout=projection.weight_layout,
        d_key=projection.d_key,
        d_value=projection.d_value,
        bias=getattr(projection.module, "bias", None) is not None,
        dtype=str(weight.dtype).removeprefix("torch."),
        device=str(weight.device),
        # Two matrices, or one of twice the height.
        gated=sum(width for width in wide if width % projection.d_key == 0) >= 2 * projection.d_key,
    )
