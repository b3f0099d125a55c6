"""Requests as rows of ids, in the contexts and with the ends that the hyper-parameters ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rome_fast.errors import EditWarning, InvalidRequestError, warn
from rome_fast.model.spec import max_positions
from rome_fast.prompt.contexts import QUESTION_CONTEXTS
from rome_fast.prompt.encode import TokenizedEdit, encode
from rome_fast.prompt.ends import ends_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.hparams import RomeHparams
    from rome_fast.prompt.request import EditRequest


# A value that says more tokens is seldom found in fewer steps (benchmarks.real_model.long_targets).
MANY_TOKENS, MANY_STEPS = 8, 100


class Encoder:
    """Encodes requests for one call; each once, also one that begins the next window.

    Args:
        context_templates: that every prompt is put into.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        hparams: RomeHparams,
        context_templates: Sequence[str],
    ) -> None:
        self._model, self._tok, self._templates = model, tok, tuple(context_templates)
        self._fact_token = hparams.fact_token
        # kmeng01's update has neither.
        is_ours = hparams.variant != "original"
        self._end = hparams.end if is_ours else "none"
        self._in_all_contexts = is_ours and hparams.contexts == "all"
        self._known: dict[tuple[EditRequest, ...], TokenizedEdit] = {}
        self._n_steps, self._has_warned = hparams.v_num_grad_steps, False

    def __call__(self, asked: Sequence[tuple[EditRequest, ...]]) -> list[TokenizedEdit]:
        """Requests, each before the facts that it keeps.

        Raises:
            InvalidRequestError: as ``encode``; or prompt and target are too long for the model.
            ChatTemplateError: the prompt cannot be put into a chat.
            TokenizerMismatchError: the subject's token cannot be found.
        """
        new = [key for key in dict.fromkeys(asked) if key not in self._known]
        known = self._known | dict(zip(new, self._encoded(new), strict=True))
        self._known = {key: known[key] for key in asked}
        return [known[key] for key in asked]

    def _encoded(self, asked: Sequence[tuple[EditRequest, ...]]) -> list[TokenizedEdit]:
        requests = [request for request, *_ in asked]
        options = [self._options(request, facts) for request, *facts in asked]
        edits = [encode(self._tok, r, *of) for r, of in zip(requests, options, strict=True)]
        ends = ends_of(self._model, self._tok, requests, edits, self._end)
        for i, end in enumerate(ends):
            if end:
                edits[i] = encode(self._tok, requests[i], *options[i], end)
            self._check_length(requests[i], edits[i])
        self._warn_of_long_targets(requests, edits)
        return edits

    def _options(
        self, request: EditRequest, facts: Sequence[EditRequest]
    ) -> tuple[tuple[str, ...], str, list[EditRequest]]:
        """Contexts, lookup and further facts of a request; itself in the other form among them."""
        templates, also = self._templates, list(facts)
        if self._in_all_contexts:
            if request.chat is None:
                templates += QUESTION_CONTEXTS
            if getattr(self._tok, "chat_template", None):
                chat = True if request.chat is None else None
                also.append(replace(request, chat=chat, end=None))
        return templates, self._fact_token, also

    def _warn_of_long_targets(
        self, requests: Sequence[EditRequest], edits: Sequence[TokenizedEdit]
    ) -> None:
        """Once, before anything is searched."""
        if self._has_warned or self._n_steps >= MANY_STEPS:
            return
        lengths = {r.target: len(e.target_ids) for r, e in zip(requests, edits, strict=True)}
        target = max(lengths, key=lengths.__getitem__, default="")
        if target and lengths[target] > MANY_TOKENS:
            self._has_warned = True
            warn(
                f"target {target[:40]!r} has {lengths[target]} tokens, and {self._n_steps} steps "
                f"seldom find a value that says more than {MANY_TOKENS}: what comes after them may "
                f"be said otherwise. v_num_grad_steps={MANY_STEPS}, or a shorter target "
                "(docs/prompts.md, Long targets)",
                EditWarning,
            )

    def _check_length(self, request: EditRequest, tokens: TokenizedEdit) -> None:
        longest, limit = tokens.input_ids.shape[1], max_positions(self._model)
        if limit is not None and longest > limit:
            raise InvalidRequestError(
                f"request prompt {request.text[:60]!r} and target make {longest} tokens with their "
                f"contexts, but the model takes {limit}: shorten the prompt"
            )
