"""Which model a log belongs to: hashes of its weights before the first edit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.beside.module import NAME, Beside
from rome_fast.errors import EditLogError
from rome_fast.model.hashes import fingerprint, sampled_hash
from rome_fast.model.spec import DownProjection
from rome_fast.model.stored import as_stored, stored_dtype
from rome_fast.model.wrappers import base_modules, base_parameters

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class EditedWeight:
    """A weight that edits are written to, as it was before the first.

    Attributes:
        sha256: of all its bits, its shape and its dtype.
    """

    layer: int
    weight_layout: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str

    @classmethod
    def of(cls, projection: DownProjection, weight: Tensor) -> EditedWeight:
        """From ``weight``, the projection's weight as it was before the first edit."""
        weight = weight.to(stored_dtype(projection.weight))
        dtype = _dtype_of(weight)
        layer, layout = projection.layer, projection.weight_layout
        return cls(layer, layout, tuple(weight.shape), dtype, fingerprint(weight))


@dataclass(frozen=True)
class Base:
    """The unedited model.

    Attributes:
        name: what it was loaded from.
        edited: the weights that are edited, by name.
        others: short hashes of all other parameters, by name, each from evenly spaced elements.
    """

    name: str
    edited: Mapping[str, EditedWeight]
    others: Mapping[str, str]

    @classmethod
    def of(cls, model: PreTrainedModel, projection: DownProjection, weight: Tensor) -> Base:
        """From a model in which only ``projection`` is edited; ``weight`` is what it was before."""
        name = f"{projection.name}.weight"
        return cls(
            name=_name_of(model),
            edited={name: EditedWeight.of(projection, weight)},
            others=_others(model, {name}),
        )

    def check(self, model: PreTrainedModel) -> None:
        """Raise EditLogError, naming the weight, unless the model is this one, unedited."""
        for name, module in base_modules(model):
            if isinstance(module, Beside):
                edited = name.removesuffix(f".{NAME}")
                raise EditLogError(
                    f"{edited}.weight has edits beside it already: revert those first"
                )
        parameters, as_widened = base_parameters(model), False
        for name, then in self.edited.items():
            now = parameters.get(name)
            if now is None:
                raise EditLogError(f"the model has no {name}, which the log edits")
            # Of a model that was widened, both forms are the same numbers.
            if stored_dtype(now) != now.dtype:
                as_widened = _dtype_of(now) == then.dtype
            _check_edited(name, then, now.detach() if as_widened else as_stored(now))
        here = _others(model, self.edited, as_widened)
        for name, digest in self.others.items():
            if name in parameters and name not in here:
                continue  # offloaded: its bits cannot be read
            if here.get(name) != digest:
                state = "differs" if name in here else "is missing"
                raise EditLogError(
                    f"{name} {state}: the log was made on another model ({self.name}); load that"
                )

    def merged(self, other: Base) -> Base:
        """The base of both logs, which are of one model, with the edited weights of both.

        Raises:
            EditLogError: they are different models; names a weight.
        """
        for name, then in other.edited.items():
            mine = self.edited.get(name)
            if mine is not None and mine != then:
                raise EditLogError(f"the logs cannot be merged: {name} differs before the edits")
        both = {**self.edited, **other.edited}
        kept = [
            {name: digest for name, digest in base.others.items() if name not in both}
            for base in (self, other)
        ]
        for name in {**kept[0], **kept[1]}:
            if kept[0].get(name) != kept[1].get(name):
                raise EditLogError(f"the logs cannot be merged: {name} differs in their models")
        return Base(self.name, both, kept[0])

    def to_json(self) -> dict[str, Any]:
        """Plain dicts."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Base:
        """The Base that gave ``to_json``, perhaps read back from a file."""
        edited = {
            name: EditedWeight(**{**weight, "shape": tuple(weight["shape"])})
            for name, weight in fields["edited"].items()
        }
        return cls(fields["name"], edited, dict(fields["others"]))


def _name_of(model: PreTrainedModel) -> str:
    """What it was loaded from; a folder by its whole path, since logs and adapters move."""
    name = str(getattr(model.config, "_name_or_path", "") or model.config.model_type)
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _check_edited(name: str, then: EditedWeight, now: Tensor) -> None:
    dtype = _dtype_of(now)
    if tuple(now.shape) != then.shape:
        raise EditLogError(
            f"{name} has shape {list(now.shape)}, but the log was made for {list(then.shape)}"
        )
    if dtype != then.dtype:
        raise EditLogError(
            f"{name} is {dtype}, but the log was made on {then.dtype}: load the model in "
            f"{then.dtype}, apply the log, then cast it"
        )
    if now.is_meta or fingerprint(now) != then.sha256:
        raise EditLogError(
            f"{name} differs from the weight that the log was made on: load the unedited model "
            "(it may hold this log's edits already)"
        )


def _dtype_of(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _others(
    model: PreTrainedModel, edited: Iterable[str], as_widened: bool = False
) -> dict[str, str]:
    return {
        name: sampled_hash([parameter.detach() if as_widened else parameter])[:16]
        for name, parameter in base_parameters(model).items()
        if name not in edited and not parameter.is_meta
    }
