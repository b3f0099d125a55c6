"""One layer: the matrix that an edit writes to, and what the block does around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from rome_fast.errors import NonFiniteError, UnsupportedModelError
from rome_fast.model.intercept import hidden_of, with_hidden
from rome_fast.model.spec import DownProjection, ModelSpec
from rome_fast.model.structure import ATTENTION, sizes
from rome_fast.model.wrappers import base_modules
from rome_fast.probe.running import factor_between, noise_like, seen_at

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LayerAnatomy:
    """What was found in one layer.

    Attributes:
        refusal: why it cannot be edited, or ""; only then the other fields are filled.
        projection: path of the down-projection in its block.
        kind: of its module; ``layout``, ``d_key``, ``d_value`` as in a DownProjection.
        gated: the key is a product of two maps of the stream.
        parallel: attention and MLP read the same state; else the MLP reads what attention wrote.
        residual: the factor by which the MLP's output is added to the stream; None where a norm
            lies in between.
    """

    layer: int
    refusal: str = ""
    projection: str = ""
    kind: str = ""
    layout: str = ""
    d_key: int = 0
    d_value: int = 0
    bias: bool = False
    dtype: str = ""
    device: str = ""
    gated: bool = False
    parallel: bool = False
    residual: float | None = 1.0

    @classmethod
    def of(cls, spec: ModelSpec, layer: int) -> LayerAnatomy:
        """Look at one layer, and run the model up to it."""
        try:
            projection = spec.down_projection(layer)
        except (UnsupportedModelError, NonFiniteError) as error:
            where = f"{type(spec.model).__name__} layer {layer} "
            return cls(layer, refusal=str(error).removeprefix(where))
        if seen_at(spec, projection.module) is None:
            return cls(layer, refusal="a text without images does not pass through it")
        return cls(
            layer=layer,
            projection=projection.name.removeprefix(f"{spec.blocks_name}.{layer}."),
            kind=type(projection.module).__name__,
            layout=projection.weight_layout,
            d_key=projection.d_key,
            d_value=projection.d_value,
            bias=getattr(projection.module, "bias", None) is not None,
            dtype=str(projection.weight.dtype).removeprefix("torch."),
            device=str(projection.weight.device),
            gated=_is_gated(spec, projection),
            parallel=_is_parallel(spec, projection),
            residual=_residual_factor(spec, projection),
        )

    def __str__(self) -> str:
        if self.refusal:
            return f"refused: {self.refusal}"
        bias = "with" if self.bias else "no"
        added = "through a norm" if self.residual is None else f"times {self.residual:.3g}"
        matrix = f"{self.projection}, {self.kind} {self.d_key} -> {self.d_value} ({self.layout})"
        said = [
            f"{matrix}, {bias} bias, {self.dtype} on {self.device}",
            "gated" if self.gated else "not gated",
            "beside attention" if self.parallel else "after attention",
            "added as it is" if self.residual == 1.0 else f"added {added}",
        ]
        return "; ".join(said)


def alike(layers: Sequence[LayerAnatomy]) -> list[tuple[int, int, LayerAnatomy]]:
    """(first, last, one of them) of each run of layers that differ in nothing but their number."""
    runs: list[tuple[int, int, LayerAnatomy]] = []
    for found in layers:
        if runs and replace(runs[-1][2], layer=found.layer) == found:
            runs[-1] = (runs[-1][0], found.layer, runs[-1][2])
        else:
            runs.append((found.layer, found.layer, found))
    return runs


def _is_gated(spec: ModelSpec, projection: DownProjection) -> bool:
    """Whether two maps of the stream, or a fused one of twice the width, make the key."""
    parent = spec.mlp(projection.layer) or spec.blocks[projection.layer]
    found = [sizes(module) for _, module in base_modules(parent)]
    narrow, fused = (spec.d_model, projection.d_key), (spec.d_model, 2 * projection.d_key)
    return found.count(narrow) > 1 or fused in found


def _is_parallel(spec: ModelSpec, projection: DownProjection) -> bool:
    """Whether the key stays the same when the attention's output is changed."""
    attention = _attention(spec.blocks[projection.layer])
    if attention is None:
        return False

    def change(_: Any, __: Any, output: Any) -> Any:
        hidden = hidden_of(output)
        return with_hidden(output, hidden + noise_like(hidden))

    before = seen_at(spec, projection.module, entering=True)
    after = seen_at(spec, projection.module, (attention, change), entering=True)
    return factor_between(after, before) is not None


def _attention(block: nn.Module) -> nn.Module | None:
    """The block's own attention; its norms have no matrix."""
    for name, module in base_modules(block):
        if "." not in name and ATTENTION.search(name):
            if any(p.dim() == 2 for p in module.parameters()):
                return module
    return None


def _residual_factor(spec: ModelSpec, projection: DownProjection) -> float | None:
    """The factor with which a change of the matrix's output reaches the end of the block."""
    block, moved = spec.blocks[projection.layer], []

    def move(_: Any, __: Any, output: Tensor) -> Tensor:
        moved.append(noise_like(output))
        return output + moved[0]

    before = hidden_of(seen_at(spec, block))
    after = hidden_of(seen_at(spec, block, (projection.module, move)))
    factor = factor_between((after - before).reshape(moved[0].shape), moved[0])
    return None if factor is None else float(f"{factor:.2g}")  # more digits may be rounding
