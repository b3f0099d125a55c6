"""The data types of an edit: request, update, result. All frozen, all plain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rome_fast.errors import RevertError
from rome_fast.prompt.request import EditRequest

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.hparams import RomeHparams
    from rome_fast.prompt.readback import Change

# Of the weight's norm. Edits of 200 facts in a good layer change at most 0.45
# (benchmarks/results/edit-quality.json).
LARGE_UPDATE = 0.5


@dataclass(frozen=True, eq=False)
class RankOneUpdate:
    """The update of one weight: v u^T for ``"out_in"`` (Linear), u v^T for ``"in_out"`` (Conv1D).

    Attributes:
        u: [d_key], C^-1 k scaled to unit length.
        v: [d_value], the value residual divided by the denominator.
        weight_layout: ``"out_in"`` or ``"in_out"``.
    """

    u: Tensor
    v: Tensor
    weight_layout: str

    def dense(self) -> Tensor:
        """The update in the weight's own shape, in the dtype of ``u``."""
        return (
            torch.outer(self.v, self.u)
            if self.weight_layout == "out_in"
            else torch.outer(self.u, self.v)
        )

    @property
    def norm(self) -> float:
        """Frobenius norm of the update."""
        return float(self.u.double().norm() * self.v.double().norm())


@dataclass(frozen=True, eq=False)
class Signature:
    """How one way of writing a subject is told from everything else, by what enters the MLP (h).

    Attributes:
        own: [n_contexts, d_model], h of the subject in the edit's contexts.
        apart: [d_model], p with p.h = 1 on these, and little on its last tokens in other company.
    """

    own: Tensor
    apart: Tensor


@dataclass(frozen=True, eq=False)
class Offset:
    """An edit that only fires for its subject: what is added there to what the matrix writes.

    Attributes:
        form: ``"neuron"`` or ``"gate"``.
        request: what it makes true.
        names: the subject as it is written, and how each way is told from everything else.
        delta: [d_value].
    """

    form: str
    request: EditRequest
    names: Mapping[str, Signature]
    delta: Tensor

    @property
    def norm(self) -> float:
        """Of what is added."""
        return float(self.delta.double().norm())


@dataclass(frozen=True, eq=False)
class JointConstraint:
    """What an edit asks of the weight where all edits are solved as one: its output at a key.

    Attributes:
        key: [d_key].
        solved: C^-1 key, [d_key].
        residual: [d_value], by how much the output shall move from the unedited weight's.
        lam: what may stay unmet, in units of k . C^-1 k.
        weight_layout: ``"out_in"`` or ``"in_out"``.
    """

    key: Tensor
    solved: Tensor
    residual: Tensor
    lam: float
    weight_layout: str

    @property
    def norm(self) -> float:
        """Of the least change that moves the output so, were it the only edit; in C's metric."""
        square = float(self.key.double() @ self.solved.double())
        return float(self.solved.double().norm() * self.residual.double().norm()) / square


# What an edit changes: the weight, or what its output is at one subject.
Update = RankOneUpdate | Offset
# What a log holds of an edit: that, or what is solved together with the log's other edits.
LoggedUpdate = Update | JointConstraint


@dataclass(frozen=True)
class Diagnostics:
    """What ``explain`` uses besides the other fields of the result.

    Attributes:
        n_layers: of the model.
        lookup_index: position of the lookup token in the bare prompt, BOS counted.
        key_agreement: cosine of the bare prompt's key and the mean key over the contexts.
        value_growth: norm of the offset found for the value over the norm of the value.
        n_keys: of the second moment; None where it is the identity.
        weight_dtype: of the edited weight, ``"float32"`` for example.
    """

    n_layers: int
    lookup_index: int
    key_agreement: float
    value_growth: float
    n_keys: int | None
    weight_dtype: str


class Undo(Protocol):
    """Reverts an edit."""

    def revert(self) -> None: ...


class _OfTheOriginal:
    """The undo of a copied result: the weight is the original's."""

    def revert(self) -> None:
        raise RevertError(
            "this result is a copy or comes from a pickle, and holds no weight to put back: revert "
            "the result that the edit returned"
        )


@dataclass(frozen=True, eq=False)
class EditResult:
    """What one edit did; what the model says was read from its edited weights.

    For ``revert`` a result keeps a copy of the weight as it was; results of one list share it.

    Attributes:
        prob_before, prob_after: probability of the whole target after the bare prompt (the
            product over its tokens).
        rank_before, rank_after: the worst rank of any target token given those before it;
            1 means that greedy decoding says the target.
        argmax_before, argmax_after: the greedy continuation, as many tokens as the target has.
        then: where that is the target, the likeliest token after it.
        end: what the search wrote behind the target; "" for nothing.
        answer_before, answer: greedy, to a natural stop: a sentence, a line, a turn, the text; of
            at most ``hparams.max_answer_tokens`` tokens.
        answer_is: "exact", the target and no more; "contained", with other words; "other"; or
            "endless", without a stop. ``success`` counts all in which the target comes first.
        runs_on: whether that goes on inside the target's last word.
        update: into the weight; an Offset where the edit stands beside it.
        update_norm, weight_norm: Frobenius norms of the update and of the weight before it; of an
            Offset, of what it adds to what the matrix writes.
        losses: loss of v* at each step, in order.
        seconds: wall-clock seconds by phase; of a window, each request's share.
        window: how many requests were searched and solved together with this one, itself
            included; 1 unless ``edit_many(order="independent")``.
        hparams: what it was edited with; ``diagnostics``: what ``rome_fast.explain`` uses.
        edit_id: its number in a Session's log; None outside of one.
        replaced: numbers of earlier edits of the same fact, which a Session keeps out of the model
            as long as this one is in it.
        raw: for an edit in a chat, what the model says of the target after the same prompt as a
            plain text, read from the same weights; None for a plain prompt.
    """

    request: EditRequest
    layer: int
    weight_name: str
    subject_token: str
    target_tokens: tuple[str, ...]
    prob_before: float
    prob_after: float
    rank_before: int
    rank_after: int
    argmax_before: str
    argmax_after: str
    update: Update
    update_norm: float
    weight_norm: float
    losses: tuple[float, ...]
    seconds: dict[str, float]
    window: int
    backend: str
    variant: str
    second_moment: str
    context_templates: tuple[str, ...]
    warnings: tuple[str, ...]
    hparams: RomeHparams
    diagnostics: Diagnostics
    _undo: Undo = field(repr=False)
    edit_id: int | None = None
    replaced: tuple[int, ...] = ()
    raw: Change | None = None
    then: str = ""
    runs_on: bool = False
    end: str = ""
    answer_before: str = ""
    answer: str = ""
    answer_is: str = ""

    @property
    def success(self) -> bool:
        """True if greedy decoding of the bare prompt, in its chat, now gives the target, whole."""
        return self.rank_after == 1 and not self.runs_on

    @property
    def form(self) -> str:
        """How it was made: by writing into the weight, or beside it, as a neuron or a gate."""
        return "weight" if isinstance(self.update, RankOneUpdate) else self.update.form

    @property
    def relative_norm(self) -> float:
        """Norm of the update over the norm of the weight before it."""
        return self.update_norm / self.weight_norm

    def revert(self) -> None:
        """Put the weight back, bit for bit, as it was before this edit.

        Edits of one weight are undone in reverse order.

        Raises:
            RevertError: the weight was changed after this edit, the edit is already undone, or
                this result is a copy.
        """
        self._undo.revert()

    def _answers(self) -> list[tuple[str, str]]:
        if not self.answer_is:
            return []
        return [("answers", f"{self.answer_before!r} -> {self.answer!r} ({self.answer_is})")]

    def _where(self) -> tuple[str, str]:
        if self.form == "weight":
            said = f"{self.weight_name}, changed by {self.relative_norm:.2%} of its norm"
            return "weight", said
        return "beside", f"{self.weight_name}, which is as it was: one {self.form} for the subject"

    def __getstate__(self) -> dict[str, Any]:
        """Of copies and pickles: a copied undo would put back a copy of the weight."""
        return {**self.__dict__, "_undo": _OfTheOriginal()}

    def __str__(self) -> str:
        phase, most = max(self.seconds.items(), key=lambda item: item[1])
        verdict = "edited" if self.success else "NOT EDITED"
        together = f", solved with {self.window - 1} others" if self.window > 1 else ""
        goes_on = f", then {self.then!r}" if self.then else ""
        ends = f", end {self.end!r}" if self.end else ""
        ranks = f"(rank {self.rank_before} -> {self.rank_after})"
        rows = [
            ("probability", f"{self.prob_before:.4f} -> {self.prob_after:.4f}   {ranks}"),
            ("model says", f"{self.argmax_before!r} -> {self.argmax_after!r}{goes_on}"),
            *self._answers(),
            *(("without chat", str(change)) for change in [self.raw] if change is not None),
            ("tokens", f"subject {self.subject_token!r}, target {list(self.target_tokens)}{ends}"),
            self._where(),
            ("loss", f"{self.losses[0]:.3f} -> {self.losses[-1]:.3f} in {len(self.losses)} steps"),
            *((("second moment", self.second_moment),) if self.form == "weight" else ()),
            ("variant", f"{self.variant}, backend {self.backend}{together}"),
            ("seconds", f"{sum(self.seconds.values()):.2f}, of them {most:.2f} for {phase}"),
            *(("warning", text) for text in self.warnings),
        ]
        return "\n".join(
            [f"{verdict}: {self.request}", *(f"  {name:<14}{text}" for name, text in rows)]
        )
