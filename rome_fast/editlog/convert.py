"""A log's edits in another form: the same values, at the same layer, for the same subjects.

What a form needs beside the value is read anew from the unedited model: keys for the weight,
what enters the MLP for what stands beside it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rome_fast.editlog.records import LogRecords, by_weight
from rome_fast.editlog.solved import about_subject
from rome_fast.editor import Editor
from rome_fast.errors import EditLogError
from rome_fast.hparams import check_form, defaults_for
from rome_fast.model.open_model import open_model
from rome_fast.moment.collect.collection import ENOUGH_KEYS_OF_A_SEQUENCE
from rome_fast.types import JointConstraint, RankOneUpdate
from rome_fast.update.softness import constraint_of, softness

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.editlog.edits import LoggedEdit
    from rome_fast.model.spec import ModelSpec
    from rome_fast.types import LoggedUpdate
    from rome_fast.value.key import Keys


def converted(
    log: LogRecords, form: str, model: PreTrainedModel, tok: PreTrainedTokenizerBase
) -> LogRecords:
    """The edits that hold (``EditLog.as_form``), numbered anew."""
    check_form(form)
    log.base.check(model)
    made = LogRecords(log.base)
    with open_model(model) as spec:
        for name, edits in by_weight(log.holding()).items():
            layer = log.base.edited[name].layer
            _convert(spec, tok, layer, form, edits, made, name)
    return made


def _convert(
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    layer: int,
    form: str,
    edits: Sequence[LoggedEdit],
    made: LogRecords,
    name: str,
) -> None:
    """Add the edits of one weight to those made."""
    editor = Editor(spec, tok, defaults_for(spec, layer, form=form)[0], None, "auto", form=form)
    editor.prepare(None, None, keys_per_dim=ENOUGH_KEYS_OF_A_SEQUENCE)
    if f"{editor.projection.name}.weight" != name:
        raise EditLogError(f"layer {layer} of the model is edited in another matrix than {name}")
    keys = [editor.keys_of(edit.request) for edit in edits]
    deltas = [_delta(edit, k) for edit, k in zip(edits, keys, strict=True)]
    if form == "weight":
        made.edits += _solved_as_one(editor, edits, keys, deltas, made.next_id)
        return
    for edit, delta in zip(edits, deltas, strict=True):
        made.edits.append(_renamed(edit, made.next_id, editor.offset_of(edit.request, delta)))
    made.entries[name] = editor.writer().module.entry


def _solved_as_one(
    editor: Editor,
    edits: Sequence[LoggedEdit],
    keys: Sequence[Keys],
    deltas: Sequence[Tensor],
    first: int,
) -> list[LoggedEdit]:
    """As a Session of the weight has them: of facts of one subject, the latest has the sum."""
    projection, moment = editor.projection, editor.second_moment
    lam = softness(editor.spec, editor.tok, projection, moment)
    found: list[LoggedEdit] = []
    for edit, own, delta in zip(edits, keys, deltas, strict=True):
        about = about_subject(found, edit.request)
        if about and not isinstance(edit.update, JointConstraint):
            delta = delta + about[-1].update.residual  # type: ignore[union-attr]
        constraint = constraint_of(projection, moment, own.prompt_key, delta, lam)
        made = _renamed(edit, first + len(found), constraint)
        found.append(replace(made, carries=tuple(other.edit_id for other in about)))
    return found


def _renamed(edit: LoggedEdit, number: int, update: LoggedUpdate) -> LoggedEdit:
    """The edit in a log of its own, with another update."""
    return replace(edit, edit_id=number, update=update, replaced=(), released=(), carries=())


def _delta(edit: LoggedEdit, keys: Keys) -> Tensor:
    """What the edit adds to what the matrix writes at its subject, [d_value]."""
    update = edit.update
    if isinstance(update, RankOneUpdate):
        return update.v.to(keys.key) * (update.u.to(keys.key) @ keys.prompt_key)
    if isinstance(update, JointConstraint):
        return update.residual.to(keys.key)
    return update.delta.to(keys.key)
