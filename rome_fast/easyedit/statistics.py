"""Which second moment the settings ask for: given, statistics, or ordinary text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import SecondMomentWarning, warn
from rome_fast.model.spec import DownProjection, ModelSpec
from rome_fast.moment.collect.resolve import resolve_second_moment
from rome_fast.moment.second_moment import SecondMoment

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.easyedit.hparams import ROMEHyperParams


def find_second_moment(
    hparams: ROMEHyperParams,
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    projection: DownProjection,
    given: object = None,
) -> SecondMoment | str | None:
    """The ``second_moment=`` for ``rome_fast.edit``; None where the settings want none.

    Args:
        hparams: checked settings; see there for what each of them means.
        given: what the caller passed, which goes first. Of texts, the first ``mom2_n_samples``.

    Raises:
        SecondMomentError: what was given, or the file, does not fit the model.
        InvalidArgumentError: ``given`` is nothing that a second moment can be made from.
    """
    dtype = getattr(torch, hparams.mom2_dtype)
    if given is None:
        if not hparams.mom2_adjustment:
            return None
        given = _statistics_file(hparams, spec.model, projection)
    if given is None:
        if hparams.mom2_dataset is not None:
            _warn_of_ordinary_text(hparams)
    elif isinstance(given, Iterable) and not isinstance(given, str | Mapping | torch.Tensor):
        given = islice(given, hparams.mom2_n_samples)
    return resolve_second_moment(given, spec, tok, projection, dtype) or "identity"


def _statistics_file(
    hparams: ROMEHyperParams, model: PreTrainedModel, projection: DownProjection
) -> Path | None:
    """``data/stats/gpt2-xl/wikipedia_stats/transformer.h.17.mlp.c_proj_float32_mom2_100000.npz``

    if there is one. kmeng01/rome calls the model by its whole name, EasyEdit by the last part.
    """
    name = str(model.config._name_or_path).rstrip("/")
    folder = f"{hparams.mom2_dataset}_stats"
    file = f"{projection.name}_{hparams.mom2_dtype}_mom2_{hparams.mom2_n_samples}.npz"
    for called in (name.replace("/", "_"), name.rpartition("/")[2]):
        path = Path(hparams.stats_dir, called, folder, file)
        if path.is_file():
            return path
    return None


def _warn_of_ordinary_text(hparams: ROMEHyperParams) -> None:
    warn(
        f"there is no file of {hparams.mom2_dataset!r} statistics in {hparams.stats_dir!r}: the "
        "second moment is that of ordinary text; second_moment= takes texts, or a saved one",
        SecondMomentWarning,
    )
