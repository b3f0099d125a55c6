"""The corridor: request -> tokens -> key -> value -> update -> what the model says now.

Orchestration only; this is the one file that knows the order of the steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from rome_fast import ops
from rome_fast.batch import EditBatch
from rome_fast.collect import resolve_second_moment
from rome_fast.contexts import check_context_templates, sample_context_templates
from rome_fast.errors import EditFailedError, HparamsError, InvalidRequestError
from rome_fast.first_pass import run_first_pass
from rome_fast.hparams import RomeHparams, defaults_for
from rome_fast.key import mean_keys
from rome_fast.models import ModelSpec, check_tokenizer, max_positions
from rome_fast.readback import findings, read_target
from rome_fast.tokens import TokenizedEdit, encode
from rome_fast.types import EditRequest, EditResult
from rome_fast.undo import WeightHistory
from rome_fast.update import apply_update_, build_constraint
from rome_fast.value import optimize_values

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Clock:
    """Seconds by phase; each ``lap`` books the time since the last one."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


class Editor:
    """What the requests of one call share. Everything is resolved before anything is written."""

    def __init__(
        self,
        spec: ModelSpec,
        tok: PreTrainedTokenizerBase,
        hparams: RomeHparams | None,
        variant: str | None,
        backend: str,
    ) -> None:
        self.clock = Clock()
        self.model, self.tok = spec.model, tok
        self.notes: list[str] = []
        check_tokenizer(self.model, tok)
        if not isinstance(hparams, RomeHparams | None):
            raise HparamsError(
                f"hparams must be a RomeHparams, got {type(hparams).__name__}: "
                "RomeHparams.from_file(path) reads files"
            )
        if hparams is None:
            hparams, note = defaults_for(self.model)
            self.notes += [note] if note else []
        self.hparams = hparams if variant is None else hparams.replace(variant=variant)
        self.projection = spec.down_projection(self.hparams.layer)
        self.backend = ops.resolve_backend(backend, self.projection.weight.device.type)
        weight = self.projection.weight
        if weight.dtype == torch.float16 and weight.device.type == "cpu":
            self.notes.append(
                "float16 is very slow on a CPU: load the model in float32 or bfloat16"
            )
        self.history = WeightHistory(self.projection, self.backend)
        self.clock.lap("prepare")

    def prepare(self, context_templates: Sequence[str] | None, second_moment: object) -> None:
        """The contexts and the second moment, sampled from the model where none are given."""
        hparams = self.hparams
        if context_templates is None:
            self.context_templates = sample_context_templates(
                self.model,
                self.tok,
                hparams.context_template_length_params,
                seed=hparams.seed,
            )
        else:
            self.context_templates = check_context_templates(context_templates)
        self.clock.lap("contexts")
        if second_moment is None and not hparams.mom2_adjustment:
            second_moment = "identity"
            self.notes.append(
                "hparams.mom2_adjustment is false: C is the identity, which harms neighbours"
            )
        dtype = getattr(torch, hparams.mom2_dtype)
        self.second_moment = resolve_second_moment(
            second_moment, self.model, self.tok, self.projection, dtype
        )
        if self.second_moment is not None and self.second_moment.count < self.projection.d_key:
            self.notes.append(
                f"second moment of {self.second_moment.count} keys for d_key "
                f"{self.projection.d_key}: neighbours are protected only from "
                f"{16 * self.projection.d_key} keys or so"
            )
        self.clock.lap("second moment")

    def edit(self, request: EditRequest, strict: bool) -> EditResult:
        """One request on the weights as they are now."""
        hparams, projection, clock = self.hparams, self.projection, self.clock
        tokens = encode(self.tok, request, self.context_templates, hparams.fact_token)
        self._check_length(request, tokens)
        prompt, target = tokens.prompt_ids.tolist(), tokens.target_ids.tolist()
        clock.lap("prepare")
        batch = EditBatch.of([tokens])
        first = run_first_pass(self.model, projection, batch)
        [keys] = mean_keys(projection, batch, first)
        clock.lap("key")
        [value] = optimize_values(
            self.model, projection, batch, first, keys.value_init[None], hparams
        )
        clock.lap("value")
        before = read_target(self.model, self.tok, prompt, target)
        weight_norm = float(projection.weight.double().norm())
        clock.lap("read before")
        constraint = build_constraint(hparams.variant, keys, value.value_delta, self.second_moment)
        update = apply_update_(projection, constraint, self.second_moment, self.backend)
        undo = self.history.record(update)
        clock.lap("update")
        after = read_target(self.model, self.tok, prompt, target)
        clock.lap("read after")
        result = EditResult(
            request=request,
            layer=projection.layer,
            weight_name=f"{projection.name}.weight",
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
            weight_norm=weight_norm,
            losses=value.losses,
            seconds=clock.seconds,
            backend=self.backend,
            variant=hparams.variant,
            second_moment="identity" if self.second_moment is None else str(self.second_moment),
            context_templates=tuple(self.context_templates),
            warnings=(
                *self.notes,
                *request.findings(),
                *value.findings(),
                *findings(request.target, before, after),
            ),
            _undo=undo,
        )
        self.clock, self.notes = Clock(), []
        if strict and not result.success:
            raise EditFailedError(f"strict=True, and the edit was undone:\n{result}")
        return result

    def _check_length(self, request: EditRequest, tokens: TokenizedEdit) -> None:
        longest, limit = tokens.input_ids.shape[1], max_positions(self.model)
        if limit is not None and longest > limit:
            raise InvalidRequestError(
                f"request prompt {request.text[:60]!r} and target make {longest} tokens with their "
                f"contexts, but the model takes {limit}: shorten the prompt"
            )
