"""How softly edits of one weight are solved as one: from the layer's statistics alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rome_fast.model.activations import read_activations
from rome_fast.prompt.ids import pad_right, text_ids
from rome_fast.types import JointConstraint

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from rome_fast.model.spec import DownProjection, ModelSpec
    from rome_fast.moment.second_moment import SecondMoment

# lam as a share of k . C^-1 k of subjects.
SHARE = 0.02
# Subjects of many kinds, of more than one token in every vocabulary, behind one word or more.
_PILOTS = (
    "He met Albert Einstein",
    "The trip to New Zealand",
    "We saw the Eiffel Tower",
    "She works for General Motors",
    "They speak of Napoleon Bonaparte",
    "A letter from William Shakespeare",
    "He studied at Harvard University",
    "The history of South Africa",
    "The Mississippi River",
    "Songs by Michael Jackson",
    "A photo of Mount Everest",
    "The head of the United Nations",
)


def softness(
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    projection: DownProjection,
    moment: SecondMoment | None,
) -> float:
    """lam for this layer, from its statistics alone: a share of the median k . C^-1 k of names."""
    rows = [ids for ids in (text_ids(tok, text) for text in _PILOTS) if ids]
    input_ids, mask = pad_right(rows)
    keys, _ = read_activations(spec.model, projection, input_ids, mask)
    last = keys[torch.arange(len(rows)), mask.sum(1) - 1]
    solved = last.double() if moment is None else moment.solve(last).to(last.device)
    return SHARE * float((last.double() * solved).sum(1).median())


def constraint_of(
    projection: DownProjection,
    moment: SecondMoment | None,
    key: Tensor,
    residual: Tensor,
    lam: float,
) -> JointConstraint:
    """What an edit asks for: that the output at its key moves by ``residual``."""
    solved = key.clone() if moment is None else moment.solve(key).to(key)
    return JointConstraint(key, solved, residual, lam, projection.weight_layout)
