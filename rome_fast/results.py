"""What a result holds: readings, norms, losses, and the remarks on them, the most urgent first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast.prompt.readback import Change, findings
from rome_fast.types import LARGE_UPDATE, Diagnostics, EditResult, RankOneUpdate
from rome_fast.value import sink

if TYPE_CHECKING:
    from rome_fast.hparams import RomeHparams
    from rome_fast.model.spec import DownProjection, ModelSpec
    from rome_fast.moment.second_moment import SecondMoment
    from rome_fast.prompt.answers import Answer
    from rome_fast.prompt.readback import Reading
    from rome_fast.types import EditRequest, Undo, Update
    from rome_fast.value.window import KeyValue


@dataclass(frozen=True)
class Call:
    """What the results of one window share; see EditResult.

    Attributes:
        notes: remarks on the call, beside those on a request.
        seconds: of one request.
    """

    spec: ModelSpec
    projection: DownProjection
    backend: str
    hparams: RomeHparams
    second_moment: SecondMoment | None
    context_templates: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    window: int
    weight_norm: float

    def result(
        self,
        request: EditRequest,
        found: KeyValue,
        update: Update,
        after: Reading,
        raw_after: Reading | None,
        answer: Answer,
        undo: Undo,
    ) -> EditResult:
        """The result of one request of the window."""
        tokens, before = found.tokens, found.before
        raw = None
        if found.raw_before is not None and raw_after is not None:
            raw = Change(found.raw_before, raw_after)
        return EditResult(
            request=request,
            layer=self.projection.layer,
            weight_name=f"{self.projection.name}.weight",
            subject_token=tokens.subject_token,
            target_tokens=tokens.target_tokens,
            prob_before=before.prob,
            prob_after=after.prob,
            rank_before=before.rank,
            rank_after=after.rank,
            argmax_before=before.argmax,
            argmax_after=after.argmax,
            update=update,
            update_norm=update.norm,
            weight_norm=self.weight_norm,
            losses=found.value.losses,
            seconds=dict(self.seconds),
            window=self.window,
            backend=self.backend,
            variant=self.hparams.variant,
            second_moment=second_moment_name(self.second_moment, update),
            context_templates=self.context_templates,
            warnings=(
                *sink.findings(tokens, found.keys),
                *self.notes,
                *_size_findings(update, self.weight_norm),
                *tokens.findings,
                *found.value.findings(),
                *findings(request.target, before, after),
            ),
            hparams=self.hparams,
            diagnostics=self._diagnostics(found),
            _undo=undo,
            raw=raw,
            then=after.then,
            runs_on=after.runs_on,
            end=tokens.end,
            answer_before="" if found.answer_before is None else found.answer_before.text,
            answer=answer.text,
            answer_is=answer.is_to(request.target) if self.hparams.max_answer_tokens else "",
        )

    def _diagnostics(self, found: KeyValue) -> Diagnostics:
        tokens, keys, moment = found.tokens, found.keys, self.second_moment
        return Diagnostics(
            n_layers=self.spec.n_layers,
            lookup_index=int(tokens.lookup_idx[tokens.prompt_row]),
            key_agreement=float(torch.cosine_similarity(keys.key, keys.prompt_key, dim=0)),
            value_growth=float(found.value.value_delta.norm() / keys.value_init.norm()),
            n_keys=None if moment is None else moment.count,
            weight_dtype=str(self.projection.weight.dtype).removeprefix("torch."),
        )


def second_moment_name(moment: SecondMoment | None, update: Update | None = None) -> str:
    """What a result says of C; an edit beside the weight is solved without."""
    if update is not None and not isinstance(update, RankOneUpdate):
        return "none"
    return "identity" if moment is None else str(moment)


def _size_findings(update: Update, weight_norm: float) -> list[str]:
    share = update.norm / weight_norm
    if not isinstance(update, RankOneUpdate) or share < LARGE_UPDATE:
        return []
    said = f"the update is {share:.0%} of the weight's norm"
    return [f"{said}: it moves other subjects, and edits made before"]
