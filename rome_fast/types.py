"""The nouns that travel through an edit: request, update, result. All frozen, all plain."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rome_fast.errors import InvalidRequestError, SubjectNotFoundError

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.explain import Diagnostics
    from rome_fast.hparams import RomeHparams

SLOT = "{}"


@dataclass(frozen=True)
class EditRequest:
    """One fact to change: after the edit, ``prompt`` with the subject in it continues ``target``.

    ``prompt`` is either a template with exactly one ``{}`` where the subject goes, or a plain
    sentence that contains the subject (its last occurrence is taken). A single ``{}`` is always
    the slot; other braces are ordinary text, and nothing is passed through ``str.format``.

    Raises:
        SubjectNotFoundError: no ``{}`` in the prompt and the subject is not in it either.
        InvalidRequestError: empty subject or target, or more than one ``{}``.
    """

    prompt: str
    subject: str
    target: str

    def __post_init__(self) -> None:
        for name in ("prompt", "subject", "target"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise InvalidRequestError(
                    f"request {name} must be a string, got {type(value).__name__}: {value!r}"
                )
            if not value.strip():
                raise InvalidRequestError(f"request {name} is empty: {value!r}")
        # Spaces around a subject belong to the prompt; one before the target is added by encode.
        object.__setattr__(self, "subject", self.subject.strip())
        object.__setattr__(self, "prompt", _as_template(self.prompt, self.subject))

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace(SLOT, self.subject, 1)

    def same_fact(self, other: EditRequest) -> bool:
        """Whether both are about one subject in one prompt; the targets may differ."""
        if self.subject != other.subject:
            return False
        return self.prompt.split() == other.prompt.split()

    def findings(self) -> list[str]:
        """What a user should know about the request."""
        after = self.prompt.split(SLOT, 1)[1][:1]
        # One script's letters run on into a word; others are written without spaces.
        if after.isalpha() and after.isascii() and self.subject[-1].isalpha():
            return [f"subject {self.subject!r} ends inside a word of {self.text!r}"]
        return []

    @classmethod
    def parse(cls, request: EditRequest | Mapping[str, Any]) -> EditRequest:
        """Read kmeng01/rome's dict, EasyEdit's flat one, a CounterFact record, or an EditRequest.

        The target is looked up as ``target_new`` (a string, or ``{"str": ...}``) or ``target``.
        Keys that only evaluation needs are ignored.
        """
        if isinstance(request, EditRequest):
            return request
        if isinstance(request, Mapping):
            # A CounterFact record holds its request under this key.
            request = request.get("requested_rewrite", request)
        if not isinstance(request, Mapping):
            raise InvalidRequestError(
                f"request must be an EditRequest or a dict, got {type(request).__name__}: "
                f"{request!r}"
            )
        target = request.get("target_new", request.get("target"))
        if isinstance(target, Mapping):
            target = target.get("str")
        found = {
            "prompt": request.get("prompt"),
            "subject": request.get("subject"),
            "target_new": target,
        }
        missing = [name for name, value in found.items() if value is None]
        if missing:
            raise InvalidRequestError(
                f"request lacks {', '.join(missing)}; got keys {sorted(map(str, request))}"
            )
        return cls(found["prompt"], found["subject"], found["target_new"])


def _as_template(prompt: str, subject: str) -> str:
    slots = prompt.count(SLOT)
    if slots == 1:
        return prompt
    if slots > 1:
        raise InvalidRequestError(
            f"request prompt holds {slots} slots '{{}}', exactly one is needed: {prompt!r}"
        )
    start = prompt.rfind(subject)
    if start < 0:
        raise SubjectNotFoundError(_not_found_message(prompt, subject))
    return prompt[:start] + SLOT + prompt[start + len(subject) :]


def _not_found_message(prompt: str, subject: str) -> str:
    message = f"subject {subject!r} is not in prompt {prompt!r} and the prompt has no '{{}}'"
    same_letters = prompt.casefold().rfind(subject.casefold())
    if same_letters >= 0:
        nearest = prompt[same_letters : same_letters + len(subject)]
        return f"{message} (nearest match: {nearest!r} at {same_letters}; the case differs)"
    match = difflib.SequenceMatcher(None, prompt, subject, autojunk=False).find_longest_match()
    if match.size >= 3:
        nearest = prompt[match.a : match.a + match.size].strip()
        return f"{message} (nearest match: {nearest!r} at {match.a})"
    return message


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


class Undo(Protocol):
    """What takes an edit back."""

    def revert(self) -> None: ...


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
        update_norm, weight_norm: Frobenius norms of the update and of the weight before it.
        losses: loss of v* at each step, in order.
        seconds: wall-clock seconds by phase; of a window, each request's share.
        window: how many requests were searched and solved together with this one, itself
            included; 1 unless ``edit_many(order="independent")``.
        hparams: what it was edited with; ``diagnostics``: what ``rome_fast.explain`` looks at.
        edit_id: its number in a Session's log; None outside of one.
        replaced: numbers of earlier edits of the same fact that the Session took out for it.
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
    update: RankOneUpdate
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

    @property
    def success(self) -> bool:
        """True if greedy decoding of the bare prompt now gives the target."""
        return self.rank_after == 1

    @property
    def relative_norm(self) -> float:
        """Norm of the update over the norm of the weight before it."""
        return self.update_norm / self.weight_norm

    def revert(self) -> None:
        """Put the weight back, bit for bit, as it was before this edit.

        Edits of one weight are undone in reverse order.

        Raises:
            RevertError: the weight was changed after this edit, or the edit is already undone.
        """
        self._undo.revert()

    def __str__(self) -> str:
        phase, most = max(self.seconds.items(), key=lambda item: item[1])
        verdict = "edited" if self.success else "NOT EDITED"
        together = f", solved with {self.window - 1} others" if self.window > 1 else ""
        ranks = f"(rank {self.rank_before} -> {self.rank_after})"
        rows = [
            ("probability", f"{self.prob_before:.4f} -> {self.prob_after:.4f}   {ranks}"),
            ("model says", f"{self.argmax_before!r} -> {self.argmax_after!r}"),
            ("tokens", f"subject {self.subject_token!r}, target {list(self.target_tokens)}"),
            ("weight", f"{self.weight_name}, changed by {self.relative_norm:.2%} of its norm"),
            ("loss", f"{self.losses[0]:.3f} -> {self.losses[-1]:.3f} in {len(self.losses)} steps"),
            ("second moment", self.second_moment),
            ("variant", f"{self.variant}, backend {self.backend}{together}"),
            ("seconds", f"{sum(self.seconds.values()):.2f}, of them {most:.2f} for {phase}"),
            *(("warning", text) for text in self.warnings),
        ]
        head = f"{verdict}: {self.request.text!r} -> {self.request.target.strip()!r}"
        return "\n".join([head, *(f"  {name:<14}{text}" for name, text in rows)])
