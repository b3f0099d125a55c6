"""kmeng01/rome's interface: its code runs with only the import line changed.

    >>> from rome_fast.kmeng01 import ROMEHyperParams, apply_rome_to_model
    >>> hparams = ROMEHyperParams.from_json("hparams/ROME/gpt2-xl.json")
    >>> model, originals = apply_rome_to_model(model, tok, requests, hparams,
    ...                                        return_orig_weights=True)

The update is solved with ``variant="both_keys"`` (``hparams.variant = "original"`` gives the
reference's own), on any device; contexts are sampled with ``hparams.seed`` for each call, not once
for the process. Where the second moment comes from is said in ``ROMEHyperParams``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeVar

from rome_fast.easyedit.hparams import ROMEHyperParams
from rome_fast.easyedit.statistics import find_second_moment
from rome_fast.edit import edit_many
from rome_fast.errors import HparamsError
from rome_fast.model.spec import ModelSpec
from rome_fast.types import EditRequest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ROMEHyperParams", "apply_rome_to_model"]

Model = TypeVar("Model", bound="PreTrainedModel")


def apply_rome_to_model(
    model: Model,
    tok: PreTrainedTokenizerBase,
    requests: Iterable[EditRequest | Mapping[str, Any]],
    hparams: ROMEHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    *,
    second_moment: object = None,
) -> tuple[Model, dict[str, Tensor]]:
    """Edit one fact after the other.

    Args:
        requests: ``{"prompt": "{} plays", "subject": ..., "target_new": {"str": ...}}``.
        copy: edit a whole copy, and leave ``model`` as it is.
        return_orig_weights: also return the weight from before the first edit.
        second_moment: as ``rome_fast.edit`` takes it; None goes by ``hparams``.

    Returns:
        The edited model (``model`` itself unless ``copy``), and {name of the weight: copy of it},
        empty unless ``return_orig_weights``.

    Raises:
        RomeFastError: a subclass says what was wrong; the weights are bit-identical to before.
    """
    if not isinstance(hparams, ROMEHyperParams):
        raise HparamsError(
            f"hparams must be ROMEHyperParams, got {type(hparams).__name__}: "
            "ROMEHyperParams.from_json(path) reads files"
        )
    settings = hparams.rome()
    spec = ModelSpec.of(model)
    projection = spec.down_projection(settings.layer, settings.shared_expert)
    hparams.check_module(projection)
    moment = find_second_moment(hparams, spec, tok, projection, second_moment)
    name, weight = f"{projection.name}.weight", projection.weight
    originals = {name: weight.detach().clone()} if return_orig_weights else {}
    edited = deepcopy(model) if copy else model
    edit_many(edited, tok, requests, settings, second_moment=moment, progress=False)
    return edited, originals
