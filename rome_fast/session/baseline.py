"""Measures the model's health on held texts, held prompts, and edits that it should still know."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.errors import InvalidArgumentError, NonFiniteError
from rome_fast.evaluate.drift import Drift
from rome_fast.evaluate.records import Question
from rome_fast.evaluate.scoring import score
from rome_fast.model.spec import max_positions
from rome_fast.prompt.contexts import sample_ids
from rome_fast.prompt.ids import all_text_ids, decode, text_ids
from rome_fast.prompt.logits import logits_at
from rome_fast.session.health import Health, HealthCheck
from rome_fast.session.others import about_others

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.editlog import EditLog
    from rome_fast.types import EditRequest
    from rome_fast.update.undo import WeightHistory

_N_TEXTS, _TEXT_TOKENS = 16, 32
# Prompts about other subjects, where the user gives none: a standard error of three points.
_N_OTHERS = 128
# Held prompts of one forward.
_AT_ONCE = 64


class Baseline:
    """The unedited model's results on the held texts and prompts; made while it is unedited.

    Raises:
        InvalidArgumentError: no text has two tokens, or a prompt none or too many.
        NonFiniteError: the unedited model's own logits are NaN or infinite.
    """

    def __init__(
        self, check: HealthCheck, model: PreTrainedModel, tok: PreTrainedTokenizerBase, seed: int
    ) -> None:
        self._check, self._model, self._tok = check, model, tok
        self._prompts = [
            prompt_ids(model, tok, prompt, "health.prompts") for prompt in check.prompts or ()
        ]
        texts = _sampled_texts(model, tok, seed) if check.texts is None else check.texts
        if all(len(ids) < 2 for ids in all_text_ids(tok, texts)):
            raise InvalidArgumentError(
                f"health.texts must have a text with a token after another, got {len(texts)} "
                "without: give longer ones, or None for texts of the model's own"
            )
        self._drift = Drift.baseline(model, tok, texts)
        self._perplexity = self._drift.measure(model)["perplexity"]
        self._answers = self._next_tokens(self._prompts)

    @torch.no_grad()
    def look(
        self,
        log: EditLog,
        history: WeightHistory,
        spread: float | None,
        unedited: Callable[[], AbstractContextManager[None]],
    ) -> Health:
        """Measure the health of the model as it is now, with the edits that hold in it.

        Args:
            unedited: while what it gives is open, no edit is in the model.
        """
        requests = [edit.request for edit in log.holding()]
        n_written = len(history)
        name, now = f"{history.projection.name}.weight", history.weight
        wide, problems = history.base.double(), []
        figures: dict[str, Any] = {"perplexity": math.inf, "kl": math.inf}
        try:
            figures |= self._figures(requests, unedited)
        except NonFiniteError:
            problems = ["logits are not finite"]
        except OverflowError:
            problems = ["perplexity is not finite"]
        health = Health(
            last_edit=log.next_id - 1,
            n_edits=len(requests),
            retention=figures.pop("retention", None),
            neighbourhood=figures.pop("neighbourhood", None),
            update_norms={name: float(torch.dist(now.double(), wide) / wide.norm())},
            ranks={name: min(n_written, *now.shape)},
            spread=spread,
            **figures,
        )
        return replace(health, problems=tuple(problems) or self._check.problems(health))

    def _figures(
        self,
        requests: Sequence[EditRequest],
        unedited: Callable[[], AbstractContextManager[None]],
    ) -> dict[str, float | None]:
        """The fields of a Health that need a forward of the model."""
        drift = self._drift.measure(self._model)
        prompts, answers = self._prompts, self._answers
        if self._check.prompts is None and requests:
            texts = about_others(requests, _N_OTHERS, random.Random(len(requests)))
            limit = max_positions(self._model) or math.inf
            prompts = [i for i in all_text_ids(self._tok, texts) if 0 < len(i) <= limit]
            with unedited():
                answers = self._next_tokens(prompts)
        same = [a == b for a, b in zip(answers, self._next_tokens(prompts), strict=True)]
        return {
            "perplexity": drift["perplexity"] / self._perplexity,
            "kl": drift["kl"],
            "retention": self._retention(requests),
            "neighbourhood": statistics.fmean(same) if same else None,
        }

    def _retention(self, requests: Sequence[EditRequest]) -> float | None:
        # Seeded by their number: another sample at every check, the same if a check is repeated.
        chosen = random.Random(len(requests)).sample(
            requests, min(self._check.sample, len(requests))
        )
        if not chosen:
            return None
        scores = score(self._model, self._tok, [Question.of(request) for request in chosen])
        return statistics.fmean(said.exact for said in scores)

    @torch.no_grad()
    def _next_tokens(self, prompts: Sequence[list[int]]) -> list[int]:
        """The likeliest token after each prompt."""
        found: list[int] = []
        for start in range(0, len(prompts), _AT_ONCE):
            part = prompts[start : start + _AT_ONCE]
            places = [(i, len(prompt) - 1) for i, prompt in enumerate(part)]
            logits = logits_at(self._model, part, places)
            if not torch.isfinite(logits).all():
                raise NonFiniteError("logits after a held prompt are NaN or infinite")
            found += logits.argmax(1).tolist()
        return found


def prompt_ids(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, prompt: str, argument: str
) -> list[int]:
    """A held prompt's ids. Raises InvalidArgumentError where the model cannot read them."""
    ids, limit = text_ids(tok, prompt), max_positions(model)
    if not 0 < len(ids) <= (limit or len(ids)):
        raise InvalidArgumentError(
            f"{argument} has one of {len(ids)} tokens, {prompt[:60]!r}, but the model takes 1 "
            f"to {limit or 'any number'}: leave it out"
        )
    return ids


def _sampled_texts(model: PreTrainedModel, tok: PreTrainedTokenizerBase, seed: int) -> list[str]:
    limit = max_positions(model)
    n_tokens = _TEXT_TOKENS if limit is None else min(_TEXT_TOKENS, limit - 1)
    generator = torch.Generator().manual_seed(seed)
    ids = sample_ids(model, tok, _N_TEXTS, n_tokens, generator=generator)
    return [decode(tok, row) for row in ids.tolist()]
