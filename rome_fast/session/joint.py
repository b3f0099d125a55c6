"""Edits of a Session's weight that are solved as one: what is asked for, and how softly."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rome_fast.model.activations import read_activations
from rome_fast.prompt.ids import pad_right, text_ids
from rome_fast.types import JointConstraint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from rome_fast.editlog import LoggedEdit
    from rome_fast.editor import Editor
    from rome_fast.model.spec import DownProjection, ModelSpec
    from rome_fast.moment.second_moment import SecondMoment
    from rome_fast.prompt.request import EditRequest
    from rome_fast.value.window import KeyValue

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


def constraint_of(editor: Editor, found: KeyValue, lam: float, moved: Tensor) -> JointConstraint:
    """What an edit asks for, from what was found on the unedited weight.

    Args:
        moved: by how much the output at its key had been moved there for facts of its subject.
    """
    key, moment = found.keys.prompt_key, editor.second_moment
    solved = key.clone() if moment is None else moment.solve(key).to(key)
    delta = found.value.value_delta
    return JointConstraint(
        key, solved, delta + moved.to(delta), lam, editor.projection.weight_layout
    )


def shrunk(constraint: JointConstraint, there: Tensor, share: float) -> JointConstraint:
    """Asking for a share of what is still missing where the other edits leave ``there``."""
    there = there.to(constraint.residual)
    return replace(constraint, residual=there + share * (constraint.residual - there))


def about_subject(edits: Sequence[LoggedEdit], request: EditRequest) -> list[LoggedEdit]:
    """Edits that are solved as one, of other facts of this request's subject."""
    names = set(request.names)
    return [
        edit
        for edit in edits
        if isinstance(edit.update, JointConstraint)
        and names.intersection(edit.request.names)
        and not edit.request.same_fact(request)
    ]
