"""How a Session begins: on an unedited model, or on one and what a journal tells of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.editlog import EditLog
from rome_fast.editlog.base import Base
from rome_fast.editor import Editor
from rome_fast.errors import JournalError
from rome_fast.gate import Gate
from rome_fast.hparams import RomeHparams
from rome_fast.models import ModelSpec, frozen
from rome_fast.owner import edited, gated, owned
from rome_fast.session.baseline import Baseline
from rome_fast.session.book import Book
from rome_fast.session.health import Health
from rome_fast.session.journal import Journal, Record, replay
from rome_fast.session.retention import RetainedMoment
from rome_fast.session.settings import Settings
from rome_fast.undo import fingerprint

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Opened:
    """All that a Session holds on to.

    Attributes:
        baseline: what the unedited model makes of the held texts; None where only ``health()`` may
            ask for it.
        checks: of the model's health, so far.
        taken_out: numbers of the edits that did not hold for being taken out at the last healthy
            look.
        resources: gives the weight, the hooks and the journal back.
    """

    editor: Editor
    settings: Settings
    book: Book
    gate: Gate
    baseline: Baseline | None
    checks: list[Health]
    taken_out: frozenset[int]
    resources: ExitStack


def open_new(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    hparams: RomeHparams | None,
    variant: str | None,
    stop_loss: float | None,
    context_templates: Sequence[str] | None,
    second_moment: object,
    journal: str | Path | None,
    options: Mapping[str, Any],
) -> Opened:
    """The arguments of ``Session``; ``options`` are the fields of Settings that are left."""
    spec, backend = ModelSpec.of(model), options["backend"]
    with edited(model), torch.inference_mode(False), frozen(spec.model), ExitStack() as stack:
        editor = Editor(spec, tok, hparams, variant, backend, stop_loss)
        editor.prepare(context_templates, second_moment)
        settings = Settings(
            hparams=editor.hparams,
            context_templates=tuple(editor.context_templates),
            **options,
        )
        log = EditLog(Base.of(spec.model, editor.projection, editor.history.base))
        baseline = _baseline(settings, editor)
        file = None
        if journal is not None:
            file = stack.enter_context(closing(Journal(journal)))
            first = {
                "kind": "session",
                "settings": settings.to_json(),
                "base": log.base.to_json(),
                "second_moment": _digest(editor),
            }
            file.create(Record(first, {}))
        return _opened(stack, model, editor, settings, log, file, {}, baseline, [], frozenset())


def reopen(
    path: str | Path,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    second_moment: object,
) -> Opened:
    """The arguments of ``Session.resume``."""
    spec = ModelSpec.of(model)
    with edited(model), torch.inference_mode(False), frozen(spec.model), ExitStack() as stack:
        file = stack.enter_context(closing(Journal(path)))
        records = file.reopen()
        first = records[0].fields
        settings, log = Settings.from_json(first["settings"]), replay(records)
        editor = Editor(spec, tok, settings.hparams, None, settings.backend)
        log.base.check(spec.model)
        editor.prepare(settings.context_templates, second_moment)
        if _digest(editor) != first["second_moment"]:
            raise JournalError(
                f"journal {str(path)!r} was begun with another second_moment: give that one"
            )
        baseline = _baseline(settings, editor)
        device = editor.projection.weight.device
        keys = {
            record.fields["edit"]["edit_id"]: record.tensors["keys"].to(device)
            for record in records
            if "keys" in record.tensors
        }
        checks, taken_out = _looks(records)
        return _opened(stack, model, editor, settings, log, file, keys, baseline, checks, taken_out)


def _baseline(settings: Settings, editor: Editor) -> Baseline | None:
    """While the model is unedited; held texts that are no good are refused before any edit."""
    if not settings.health.every:
        return None
    return Baseline(settings.health, editor.model, editor.tok, editor.hparams.seed)


def _looks(records: Sequence[Record]) -> tuple[list[Health], frozenset[int]]:
    """The looks of a journal, and which edits were taken out at the last healthy one."""
    checks: list[Health] = []
    now = then = frozenset[int]()
    for fields in (record.fields for record in records):
        if fields["kind"] == "taken_out":
            now = frozenset(fields["edits"])
        elif fields["kind"] == "health":
            checks.append(Health.from_json(fields["health"]))
            then = now if checks[-1].healthy else then
    return checks, then


def _opened(
    stack: ExitStack,
    model: PreTrainedModel,
    editor: Editor,
    settings: Settings,
    log: EditLog,
    journal: Journal | None,
    keys: dict[int, Tensor],
    baseline: Baseline | None,
    checks: list[Health],
    taken_out: frozenset[int],
) -> Opened:
    projection = editor.projection
    stack.enter_context(owned(projection.weight, f"{projection.name}.weight"))
    retained = None
    if settings.retain:
        retained = RetainedMoment(editor.second_moment, settings.retain, projection, editor.backend)
    gate = stack.enter_context(gated(model))
    book = Book(log, editor.history, retained, journal, keys)
    resources = stack.pop_all()
    return Opened(editor, settings, book, gate, baseline, checks, taken_out, resources)


def _digest(editor: Editor) -> str:
    """Of the second moment, short: its diagonal and its damping stand for all of it."""
    moment = editor.second_moment
    if moment is None:
        return "identity"
    return f"{fingerprint(moment.exact_sum().diagonal())} {moment.damping}"
