"""What a model is made of, and whether each of its layers takes an edit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rome_fast.edit import Request, trial
from rome_fast.errors import (
    EditRejectedError,
    EditWarning,
    NonFiniteError,
    UnsupportedModelError,
)
from rome_fast.hparams import defaults_for
from rome_fast.model.memory import format_bytes
from rome_fast.model.open_model import frozen
from rome_fast.model.spec import ModelSpec, check_tokenizer
from rome_fast.probe.anatomy import Anatomy
from rome_fast.prompt.contexts import WRITTEN_CONTEXTS
from rome_fast.prompt.encode import TokenizedEdit, encode
from rome_fast.timings import progress_bar
from rome_fast.types import EditRequest
from rome_fast.value.memory import estimate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Most models know the fact; a model that does not can be tried with it as well.
REQUEST = EditRequest("The capital of {} is", "France", "Rome")

_HEAD = ("layer", "probability", "rank", "update", "loss", "steps", "seconds", "memory")


@dataclass(frozen=True)
class TriedLayer:
    """One edit of one layer, made on the unedited model and undone.

    Attributes:
        refusal: why the layer cannot be edited, or its update was refused; "" if it was edited.
            Only then the other fields have values, as in an EditResult.
        steps: of the search for v*.
        seconds: of the edit, without the contexts that all layers share.
        memory: bytes that an edit takes beyond the model, with C; an estimate.
        notes: further remarks for the user.
    """

    layer: int
    refusal: str = ""
    success: bool = False
    prob_before: float | None = None
    prob_after: float | None = None
    rank_after: int | None = None
    relative_norm: float | None = None
    loss: float | None = None
    steps: int | None = None
    seconds: float | None = None
    memory: int | None = None
    notes: tuple[str, ...] = ()

    def _cells(self) -> tuple[str, ...]:
        if self.refusal:
            return str(self.layer), self.refusal
        return (
            str(self.layer),
            f"{self.prob_before:.4f} -> {self.prob_after:.4f}",
            str(self.rank_after),
            f"{self.relative_norm:.1%}",
            f"{self.loss:.3f}",
            str(self.steps),
            f"{self.seconds:.2f}",
            format_bytes(self.memory or 0),
        )


@dataclass(frozen=True)
class Probe:
    """What ``probe`` has found.

    Attributes:
        anatomy: where the parts of the model are, and what is done between them.
        layers: the trial edits.
    """

    anatomy: Anatomy
    request: EditRequest
    layers: tuple[TriedLayer, ...]

    @property
    def editable(self) -> tuple[int, ...]:
        """The layers in which the trial edit took."""
        return tuple(tried.layer for tried in self.layers if tried.success)

    def __str__(self) -> str:
        asked = f"{self.request.text!r} -> {self.request.target.strip()!r}"
        lines = [str(self.anatomy), "", f"trial edits, each undone, with C = I: {asked}"]
        rows = [_HEAD, *(tried._cells() for tried in self.layers)]
        whole = [row for row in rows if len(row) == len(_HEAD)]
        widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
        for row in rows:
            # A refusal spans the columns.
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
            lines.append("  " + "  ".join(cells if len(row) == len(_HEAD) else [cells[0], row[1]]))
        edited = [tried for tried in self.layers if not tried.refusal]
        # What is said of one layer stands in its row.
        notes = [
            n for n in (edited[0].notes if edited else ()) if all(n in t.notes for t in edited)
        ]
        lines += [f"note: {note}" for note in notes]
        return "\n".join(lines)


def probe(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    request: Request = REQUEST,
    *,
    layers: Sequence[int] | None = None,
    progress: bool = True,
) -> Probe:
    """Say where a model's parts are, and try an edit in each layer; its bits are kept.

    The trial edits are made with C = I, so that nothing has to be collected: they tell whether a
    layer can be edited, not how well (that is ``suggest_layer``).

    Args:
        model, tok, request: as in ``rome_fast.edit``.
        layers: which to try; None tries all.
        progress: show a bar.

    Raises:
        UnsupportedModelError: the model is no decoder, or its parts cannot be found.
        TokenizerMismatchError, InvalidRequestError: as in ``edit``.
        HparamsError: there is no such layer.
    """
    parsed, spec = EditRequest.parse(request), ModelSpec.of(model)
    check_tokenizer(spec.model, tok)
    anatomy = Anatomy.of(model)
    with frozen(spec):
        tokens = encode(tok, parsed, WRITTEN_CONTEXTS)
    chosen = range(spec.n_layers) if layers is None else layers
    tried = [
        _try(model, spec, tok, parsed, tokens, layer)
        for layer in progress_bar(chosen, show=progress, desc="trial edits", unit="layer")
    ]
    return Probe(anatomy, parsed, tuple(tried))


def _try(
    model: PreTrainedModel,
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    request: EditRequest,
    tokens: TokenizedEdit,
    layer: int,
) -> TriedLayer:
    options = {"second_moment": "identity", "context_templates": WRITTEN_CONTEXTS}
    try:
        memory = estimate(spec, spec.down_projection(layer), [tokens]).total
        hparams, _ = defaults_for(spec, layer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EditWarning)
            with trial(model, tok, request, hparams, **options) as result:
                return TriedLayer(
                    layer=layer,
                    success=result.success,
                    prob_before=result.prob_before,
                    prob_after=result.prob_after,
                    rank_after=result.rank_after,
                    relative_norm=result.relative_norm,
                    loss=result.losses[-1],
                    steps=len(result.losses),
                    seconds=sum(result.seconds.values()),
                    memory=memory,
                    notes=result.warnings,
                )
    except (UnsupportedModelError, EditRejectedError, NonFiniteError) as error:
        return TriedLayer(layer, refusal=str(error))
