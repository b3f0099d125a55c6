"""How a Session begins: new on an unedited model, or resumed on one from a journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.beside.writer import takes_neurons
from rome_fast.editlog import EditLog
from rome_fast.editlog.base import Base
from rome_fast.editlog.journal import Record, replay
from rome_fast.editor import Editor, checked_hparams
from rome_fast.errors import JournalError
from rome_fast.hparams import RomeHparams
from rome_fast.model.hashes import tokenizer_hash
from rome_fast.model.lock import ModelLock
from rome_fast.model.open_model import open_model
from rome_fast.model.owner import owned, shared_lock
from rome_fast.model.spec import ModelSpec
from rome_fast.moment.collect.collection import ENOUGH_KEYS_OF_A_SEQUENCE
from rome_fast.moment.second_moment import SecondMoment
from rome_fast.session.baseline import Baseline
from rome_fast.session.health import Health
from rome_fast.session.journal import Journal
from rome_fast.session.ledger import Ledger
from rome_fast.session.retention import RetainedMoment
from rome_fast.session.settings import Settings
from rome_fast.session.spread import Spread
from rome_fast.update.softness import softness

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Of searches for the weight: the damage that an update does there grows with its size, and what
# L-BFGS finds is larger than what Adam does (docs/decisions.md).
STOP_LOSS, SOLVER = 0.3, "adam"


@dataclass(frozen=True, eq=False)
class SessionParts:
    """Everything that a Session owns.

    Attributes:
        baseline: the unedited model's results on the held texts; None where only ``health()`` may
            need it.
        checks: of the model's health, so far.
        taken_out: numbers of the edits that were taken out at the last healthy check.
        resources: closing it releases the weight, the hooks and the journal.
    """

    editor: Editor
    settings: Settings
    ledger: Ledger
    lock: ModelLock
    baseline: Baseline | None
    checks: list[Health]
    taken_out: frozenset[int]
    resources: ExitStack


def start_new(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    hparams: RomeHparams | None,
    variant: str | None,
    stop_loss: float | None,
    context_templates: Sequence[str] | None,
    second_moment: object,
    journal: str | Path | None,
    form: str | None,
    options: Mapping[str, Any],
) -> SessionParts:
    """Begin a Session with its arguments; ``options`` are the remaining fields of Settings."""
    with open_model(model) as spec, ExitStack() as stack:
        if form is None:
            form = _own_form(spec, hparams, second_moment)
        changes = _changes(stop_loss, form)
        editor = Editor(spec, tok, hparams, variant, options["backend"], changes, form)
        file = None
        if journal is not None:
            file = stack.enter_context(closing(Journal(journal)))
            file.check_new()
        editor.prepare(context_templates, second_moment, keys_per_dim=ENOUGH_KEYS_OF_A_SEQUENCE)
        options = {**options, "lam": _softness(editor, options["lam"])}
        settings = Settings(
            hparams=editor.hparams,
            context_templates=tuple(editor.context_templates),
            form=editor.form,
            **options,
        )
        log = EditLog(Base.of(spec.model, editor.projection, editor.history.base))
        baseline = _baseline(settings, editor)
        parts = _session_parts(
            stack, model, editor, settings, log, file, {}, baseline, [], frozenset()
        )
        if file is not None:
            # Last: an opening that fails leaves no journal behind.
            _begin(file, parts, second_moment)
        return replace(parts, resources=stack.pop_all())


def _changes(stop_loss: float | None, form: str) -> dict[str, Any]:
    """What a Session searches with instead of what the hyper-parameters say."""
    own = {"v_stop_loss": STOP_LOSS, "solver": SOLVER} if form == "weight" else {}
    return own if stop_loss is None else {**own, "v_stop_loss": stop_loss}


def _softness(editor: Editor, lam: float | None) -> float | None:
    """How softly edits of the weight are solved as one, from the layer's statistics."""
    if lam is not None or editor.form != "weight":
        return lam
    return softness(editor.spec, editor.tok, editor.projection, editor.second_moment)


def _own_form(spec: ModelSpec, hparams: RomeHparams | None, second_moment: object) -> str:
    """Neurons, where the MLP can have them and nothing speaks of the weight."""
    hparams, _ = checked_hparams(spec, hparams)
    if second_moment is not None:
        return "weight"
    projection = spec.down_projection(hparams.layer, hparams.shared_expert)
    return "neuron" if takes_neurons(spec, projection, hparams.fact_token) else "weight"


def resume(
    path: str | Path,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    second_moment: object,
) -> SessionParts:
    """Resume a Session; the arguments are those of ``Session.resume``."""
    with open_model(model) as spec, ExitStack() as stack:
        file = stack.enter_context(closing(Journal(path)))
        records = file.reopen()
        first = records[0].fields
        settings = Settings.from_json(first["settings"])
        log = EditLog(**vars(replay(file.path, records)))
        editor = Editor(spec, tok, settings.hparams, None, settings.backend, form=settings.form)
        log.base.check(spec.model)
        if tokenizer_hash(tok) != first["tokenizer"]:
            raise JournalError(
                f"journal {str(file.path)!r} was begun with another tokenizer than tok: its tokens "
                "would be others"
            )
        if second_moment is None and settings.form == "weight":
            second_moment = _own_moment(file, first["second_moment"])
        editor.prepare(settings.context_templates, second_moment)
        _check_moment(file, editor, records[0])
        baseline = _baseline(settings, editor)
        device = editor.projection.weight.device
        keys = {
            record.fields["edit"]["edit_id"]: record.tensors["keys"].to(device)
            for record in records
            if "keys" in record.tensors
        }
        checks, taken_out = _looks(records)
        parts = _session_parts(
            stack, model, editor, settings, log, file, keys, baseline, checks, taken_out
        )
        return replace(parts, resources=stack.pop_all())


def _baseline(settings: Settings, editor: Editor) -> Baseline | None:
    """Measure the unedited model, so that unusable held texts are refused before any edit."""
    if not settings.health.every:
        return None
    return Baseline(settings.health, editor.model, editor.tok, editor.hparams.seed)


def _looks(records: Sequence[Record]) -> tuple[list[Health], frozenset[int]]:
    """The health checks of a journal, and the edits that were taken out at the last healthy one."""
    checks: list[Health] = []
    now = then = frozenset[int]()
    for fields in (record.fields for record in records):
        if fields["kind"] == "taken_out":
            now = now.union(fields["out"]).difference(fields["back"])
        elif fields["kind"] == "health":
            checks.append(Health.from_json(fields["health"]))
            then = now if checks[-1].healthy else then
    return checks, then


def _session_parts(
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
) -> SessionParts:
    projection = editor.projection
    editor.solves_jointly = settings.solve == "joint"
    stack.enter_context(owned(projection.weight, f"{projection.name}.weight"))
    retained = None
    if settings.solve == "sequential" and settings.retain and settings.form == "weight":
        retained = RetainedMoment(editor.second_moment, settings.retain, projection, editor.backend)
    lock = stack.enter_context(shared_lock(model))
    try:
        spread = Spread(editor.history.base, projection.weight_layout, editor.second_moment)
        ledger = Ledger(log, editor.history, retained, journal, keys, spread)
        entry = log.entries.get(f"{projection.name}.weight")
        if entry is not None:
            ledger.stand(editor.writer(entry).module)
    except BaseException:  # also Ctrl-C: all edits of a journal are in the weight, or none
        editor.edits.rewind()
        raise
    return SessionParts(editor, settings, ledger, lock, baseline, checks, taken_out, stack)


def _begin(file: Journal, parts: SessionParts, given: object) -> None:
    """Write the first record; keep a second moment that nobody could pass again on resuming."""
    moment = parts.editor.second_moment
    kept = moment is not None and not isinstance(given, SecondMoment | str | Path)
    fields = {
        "kind": "session",
        "settings": parts.settings.to_json(),
        "base": parts.ledger.log.base.to_json(),
        "tokenizer": tokenizer_hash(parts.editor.tok),
        "second_moment": {
            "is_kept": kept,
            "source": "identity" if moment is None else moment.source,
            "damping": None if moment is None else moment.damping,
        },
    }
    tensors = {} if moment is None else {"diagonal": _diagonal(moment)}
    file.create(Record(fields, tensors), moment if kept else None)


def _own_moment(file: Journal, told: Mapping[str, Any]) -> Path | str:
    """The ``second_moment`` argument that gives the one that the journal was begun with."""
    if told["damping"] is None:
        return "identity"
    if not told["is_kept"]:
        raise JournalError(
            f"journal {str(file.path)!r} was begun with a second_moment of yours "
            f"({told['source']}): give that one"
        )
    if not file.moment_path.is_file():
        raise JournalError(
            f"journal {str(file.path)!r} has lost its second moment {file.moment_path.name!r}: "
            "put that file back beside it"
        )
    return file.moment_path


def _check_moment(file: Journal, editor: Editor, first: Record) -> None:
    """Compare diagonal and damping with the journal's, up to the rounding of other hardware.

    Raises:
        JournalError: the second moment is not the one that the journal was begun with.
    """
    told, then = first.fields["second_moment"], first.tensors.get("diagonal")
    moment = editor.second_moment
    if moment is None or then is None:
        same = moment is None and then is None
    else:
        now = _diagonal(moment)
        same = now.shape == then.shape and torch.allclose(now, then, rtol=1e-3, atol=0)
        same &= moment.damping == told["damping"]
    if not same:
        raise JournalError(
            f"journal {str(file.path)!r} was begun with another second_moment "
            f"({told['source']}): give that one, or leave it out"
        )


def _diagonal(moment: SecondMoment) -> Tensor:
    """Diagonal of C, [d_key] on the CPU."""
    return (moment.exact_sum().diagonal() / moment.count).cpu()
