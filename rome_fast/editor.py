"""The pipeline of an edit: request -> tokens -> key -> value -> update -> reading the model.

Orchestration only; this is the one file that knows the order of the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.beside.entry import Entry
from rome_fast.beside.writer import Made, OffsetUndo, OffsetWriter
from rome_fast.errors import (
    EditFailedError,
    HparamsError,
    InvalidArgumentError,
)
from rome_fast.hparams import RomeHparams, check_form, defaults_for
from rome_fast.layer_edits import LayerEdits
from rome_fast.model.memory import format_bytes
from rome_fast.model.open_model import EditSite
from rome_fast.model.spec import ModelSpec, check_tokenizer
from rome_fast.moment.collect.collection import ENOUGH_KEYS
from rome_fast.moment.collect.ranks import Ranks
from rome_fast.moment.collect.resolve import resolve_second_moment
from rome_fast.prompt.answers import Answer, read_answers
from rome_fast.prompt.contexts import check_context_templates, contexts_for
from rome_fast.prompt.encode import TokenizedEdit
from rome_fast.prompt.encoder import Encoder
from rome_fast.prompt.own_words import not_its_own_words
from rome_fast.prompt.readback import Reading, read_targets
from rome_fast.results import Call
from rome_fast.timings import Timings
from rome_fast.types import EditRequest, EditResult, Offset, RankOneUpdate, Undo, Update
from rome_fast.update.joint import apply_updates_, count_independent
from rome_fast.update.solve import Constraint, apply_update_, build_constraint
from rome_fast.update.undo import UndoHandle, WeightHistory
from rome_fast.value import sink
from rome_fast.value.batch import EditBatch
from rome_fast.value.first_pass import run_first_pass
from rome_fast.value.key import mean_keys
from rome_fast.value.window import KeyValue, KeyValueSearch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.moment.second_moment import SecondMoment
    from rome_fast.value.key import Keys


def checked_hparams(
    spec: ModelSpec, given: object, variant: str | None = None, form: str = "weight"
) -> tuple[RomeHparams, str | None]:
    """What to edit with, and a remark; None: the defaults for the model.

    Raises:
        HparamsError: it is something else.
    """
    if given is None:
        return defaults_for(spec, variant=variant, form=form)
    if not isinstance(given, RomeHparams):
        raise HparamsError(
            f"hparams must be a RomeHparams, got {type(given).__name__}: "
            "RomeHparams.from_file(path) reads files"
        )
    return given, None


@dataclass(frozen=True, eq=False)
class Proposal:
    """An edit that was solved on the present weights, but not written into them.

    Attributes:
        weight_norm, losses, seconds, warnings: as in an EditResult.
    """

    update: Update
    weight_norm: float
    losses: tuple[float, ...]
    seconds: dict[str, float]
    warnings: tuple[str, ...]


class Editor:
    """What the requests of one call share. Everything is resolved before anything is written.

    Attributes:
        solves_jointly: whether a Session solves its edits of the weight as one.
        ranks: the processes that share a window's searches; each makes all of the edits.
        tell: is told how much memory a window's searches take, before they begin.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tok: PreTrainedTokenizerBase,
        hparams: RomeHparams | None,
        variant: str | None,
        backend: str,
        changes: Mapping[str, Any] | None = None,
        form: str = "weight",
    ) -> None:
        self.timings, self.form, self.ranks = Timings(), check_form(form), Ranks()
        self.solves_jointly = False
        self.tell: Callable[[str], Any] | None = None
        self.spec, self.tok = spec, tok
        self.notes: list[str] = []
        self._asked_backend, self._variant = backend, variant
        self._changes = {**(changes or {}), **({} if variant is None else {"variant": variant})}
        self._is_derived = hparams is None
        check_tokenizer(self.model, tok)
        hparams, note = checked_hparams(spec, hparams, variant, form)
        self.notes += [note] if note else []
        self._take(hparams)
        self.timings.lap("prepare")

    @property
    def history(self) -> WeightHistory:
        """Of the weight."""
        return self.edits.history

    @property
    def model(self) -> PreTrainedModel:
        return self.spec.model

    def _take(self, hparams: RomeHparams) -> None:
        """Set the hyper-parameters, and with them the place of the edit."""
        self.hparams = hparams.replace(**self._changes)
        site = EditSite.of(
            self.spec, self.hparams.layer, self.hparams.shared_expert, self._asked_backend
        )
        self.projection, self.backend = site.projection, site.backend
        self.notes += site.notes
        self.edits = LayerEdits(self.projection, self.backend)
        self._search = KeyValueSearch(
            self.spec, self.tok, self.projection, self.hparams, self._asked_backend
        )

    def prepare(
        self,
        context_templates: Sequence[str] | None,
        second_moment: object,
        requests: Sequence[EditRequest] = (),
        keys_per_dim: int = ENOUGH_KEYS,
    ) -> None:
        """Set contexts and second moment; not given: the hparams' ones, and that of ordinary text.

        Where no hyper-parameters were given and all ``requests`` open their texts with the
        subject's only token, the layer becomes one in which their keys are their own.
        """
        hparams = self.hparams
        if context_templates is None:
            self.context_templates = contexts_for(self.model, self.tok, hparams)
        else:
            self.context_templates = check_context_templates(context_templates)
        self.timings.lap("contexts")
        self._encoder = Encoder(self.model, self.tok, hparams, self.context_templates)
        if self._is_derived:
            self._leave_the_sink(requests, context_templates is None)
        self.second_moment: SecondMoment | None = None
        if self.form != "weight":
            if second_moment is not None:
                raise InvalidArgumentError(
                    f"second_moment has no part in form={self.form!r}, which writes into no "
                    "weight: leave it out"
                )
            return
        if second_moment is None and not hparams.mom2_adjustment:
            second_moment = "identity"
            self.notes.append(
                "hparams.mom2_adjustment is false: C is the identity, which harms neighbours"
            )
        dtype = getattr(torch, hparams.mom2_dtype)
        self.second_moment = resolve_second_moment(
            second_moment, self.spec, self.tok, self.projection, dtype, keys_per_dim
        )
        if self.second_moment is not None and self.second_moment.count < self.projection.d_key:
            self.notes.append(
                f"second moment of {self.second_moment.count} keys for d_key "
                f"{self.projection.d_key}: one a dimension or more protects neighbours better"
            )
        self.timings.lap("second moment")

    def _leave_the_sink(self, requests: Sequence[EditRequest], are_chosen: bool) -> None:
        """Go down to a layer in which the keys of first tokens are their own, if they are all."""
        # Most calls end here: only the first of their requests is encoded before its window.
        if not any(map(sink.opens_its_text, self.encoded(requests[:1]))):
            return
        layer = sink.deepest_own_key(self.spec, self.encoded(requests), self.hparams.layer)
        if layer != self.hparams.layer:
            self.notes = [sink.moved(self.hparams.layer, layer)]
            hparams = defaults_for(self.spec, layer, self._variant, self.form)[0]
            # So low, one search in ten needs more steps than in the usual layer.
            self._take(hparams.replace(v_num_grad_steps=2 * hparams.v_num_grad_steps))
            if are_chosen:
                self.context_templates = sink.more_of_the_prompt(self.context_templates)
            self._encoder = Encoder(self.model, self.tok, self.hparams, self.context_templates)

    def edit(self, requests: Sequence[EditRequest], strict: bool) -> list[EditResult]:
        """Edit a window of requests, all searched on the present weights and solved together.

        Returns:
            One result per request, in order; fewer than requests where the keys of one depend on
            those before it, or where it is about one of their subjects. The rest must then be
            searched on the new model.
        """
        requests = requests[: self.n_apart(requests)]
        if self.form == "weight":
            results = self._edit_weight(requests)
        else:
            results = self._edit_beside(requests)
        failed = [result for result in results if not result.success]
        if strict and failed:
            raise EditFailedError(f"strict=True, and the edit was undone:\n{failed[0]}")
        return results

    def _edit_beside(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        found = self.find(requests)
        weight_norm, before = self.weight_norm(), self.writer().module.offsets
        made = [self.made(request, f) for request, f in zip(requests, found, strict=True)]
        remarks = self.writer().add(made)
        offsets = [m.offset for m in made]
        undos = [OffsetUndo(self.writer().module, offset, before) for offset in offsets]
        self.timings.lap("update")
        results = self.report(requests, found, offsets, undos, weight_norm)
        return [
            replace(result, warnings=(*result.warnings, *remark))
            for result, remark in zip(results, remarks, strict=True)
        ]

    def _edit_weight(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        found = self.find(requests)
        constraints = [self.constraint(f) for f in found]
        weight_norm, n_before = self.weight_norm(), len(self.history)
        n_kept = count_independent(constraints, self.second_moment)
        updates = apply_updates_(self.history, constraints[:n_kept], self.second_moment)
        undos = [UndoHandle(self.history, n_before + i) for i in range(1, n_kept + 1)]
        self.timings.lap("update")
        return self.report(requests, found, updates, undos, weight_norm)

    def writer(self, entry: Entry | None = None) -> OffsetWriter:
        """What makes offsets. ``entry``: its statistics, if known."""
        if self.edits.writer is None:
            self.edits.writer = OffsetWriter(
                *(self.spec, self.tok, self.projection, self.context_templates),
                self.hparams.fact_token,
                entry,
            )
            if self.form == "neuron":
                self.notes += self.edits.writer.doubts()
        return self.edits.writer

    def made(self, request: EditRequest, found: KeyValue) -> Made:
        """The offset of a request, not yet at the model."""
        delta = found.value.value_delta
        return self.writer().make(self.spec, self.form, request, found.tokens, delta)

    def n_apart(self, requests: Sequence[EditRequest]) -> int:
        """How many can be searched at once: not what has an edited subject, or that of one before.

        Such a request is searched alone, with the edits of its subject at the model.
        """
        seen: set[str] = set()
        for n, request in enumerate(requests):
            names = set(request.names)
            together = self.form != "weight" or self.solves_jointly
            if self.edits.has_subject(request) or (together and seen & names):
                return max(n, 1)
            seen |= names
        return len(requests)

    def find(self, requests: Sequence[EditRequest], answers: bool = True) -> list[KeyValue]:
        """Keys and values of a window of requests on the weights as they are now.

        Args:
            answers: whether to read what the model answers.
        """
        with self.edits.for_search(requests):
            found = self._searched(self.encoded(requests))
        edits = [f.tokens for f in found]
        before = self._answers(edits) if answers else [None] * len(edits)
        said = zip(found, self._read_raw(edits), before, strict=True)
        found = [replace(f, raw_before=raw, answer_before=answer) for f, raw, answer in said]
        found = self._in_its_own_words(requests, found)
        self.timings.lap("read before")
        return found

    def _searched(self, edits: Sequence[TokenizedEdit]) -> list[KeyValue]:
        """Keys and values, those of a window found by all processes together."""
        if self.tell is not None:
            self.tell(f"about {format_bytes(self._search.bytes_at_once(edits))} at once")
        if self.ranks.size == 1:
            return self._search.find(self.spec, edits, self.timings)

        def search(numbers: Sequence[int]) -> list[KeyValue]:
            found = self._search.find(self.spec, [edits[i] for i in numbers], self.timings)
            return [f.to("cpu") for f in found]

        device = self.projection.weight.device
        return [f.to(device) for f in self.ranks.share(len(edits), search)]

    def _in_its_own_words(
        self, requests: Sequence[EditRequest], found: Sequence[KeyValue]
    ) -> list[KeyValue]:
        """With a remark where a chat's target is not how the model answers."""
        in_chat = [i for i, request in enumerate(requests) if request.chat is not None]
        edits = [found[i].tokens for i in in_chat]
        remarks = not_its_own_words(
            self.model,
            self.tok,
            [requests[i].target for i in in_chat],
            [edit.prompt_ids.tolist() for edit in edits],
            [edit.target_ids.tolist() for edit in edits],
        )
        with_remarks = list(found)
        for i, edit, remark in zip(in_chat, edits, remarks, strict=True):
            if remark:
                tokens = replace(edit, findings=(*edit.findings, remark))
                with_remarks[i] = replace(found[i], tokens=tokens)
        return with_remarks

    def _read_raw(self, edits: Sequence[TokenizedEdit]) -> list[Reading | None]:
        """For requests in a chat, what the model says after the plain prompt; None for others."""
        asked = [edit.raw for edit in edits if edit.raw is not None]
        if not asked:
            return [None] * len(edits)
        prompts, targets = [a.prompt_ids for a in asked], [a.target_ids for a in asked]
        readings = iter(read_targets(self.model, self.tok, prompts, targets))
        return [None if edit.raw is None else next(readings) for edit in edits]

    def _answers(self, edits: Sequence[TokenizedEdit]) -> list[Answer]:
        """What the model answers to the bare prompts, to its natural stop."""
        prompts = [edit.prompt_ids.tolist() for edit in edits]
        return read_answers(self.model, self.tok, prompts, self.hparams.max_answer_tokens)

    def constraint(self, found: KeyValue) -> Constraint:
        """What the update of a request must do."""
        return build_constraint(self.hparams.variant, found.keys, found.value.value_delta)

    def weight_norm(self) -> float:
        """Frobenius norm of the weight as it is now."""
        return float(self.projection.weight.double().norm())

    def report(
        self,
        requests: Sequence[EditRequest],
        found: Sequence[KeyValue],
        updates: Sequence[Update],
        undos: Sequence[Undo],
        weight_norm: float,
    ) -> list[EditResult]:
        """Read what the model says with the updates in it; one result per update."""
        edited = [f.tokens for f in found[: len(updates)]]

        def read(numbers: Sequence[int]) -> list[Reading]:
            prompts = [edited[i].prompt_ids.tolist() for i in numbers]
            targets = [edited[i].target_ids.tolist() for i in numbers]
            return read_targets(self.model, self.tok, prompts, targets)

        after = self.ranks.share(len(edited), read)
        raw_after, answers = self._read_raw(edited), self._answers(edited)
        self.timings.lap("read after")
        call = Call(
            spec=self.spec,
            projection=self.projection,
            backend=self.backend,
            hparams=self.hparams,
            second_moment=self.second_moment,
            context_templates=tuple(self.context_templates),
            notes=tuple(self.notes),
            seconds={name: s / len(updates) for name, s in self.timings.seconds.items()},
            window=len(updates),
            weight_norm=weight_norm,
        )
        parts = zip(requests, found, updates, after, raw_after, answers, undos, strict=False)
        self.timings, self.notes = Timings(), []
        return [call.result(*part) for part in parts]

    def propose(self, requests: Sequence[EditRequest]) -> list[Proposal]:
        """Search a window of requests together, but solve each as if it were the only one.

        The weight's bits are the same before and after.
        """
        found, weight_norm = self.find(requests, answers=False), self.weight_norm()
        solved = [self._solve(request, f) for request, f in zip(requests, found, strict=True)]
        self.timings.lap("update")
        seconds = {phase: s / len(requests) for phase, s in self.timings.seconds.items()}
        proposals = [
            Proposal(
                update=update,
                weight_norm=weight_norm,
                losses=f.value.losses,
                seconds=seconds,
                warnings=(*self.notes, *f.tokens.findings, *f.value.findings(), *remarks),
            )
            for f, (update, remarks) in zip(found, solved, strict=True)
        ]
        self.timings, self.notes = Timings(), []
        return proposals

    def _solve(self, request: EditRequest, found: KeyValue) -> tuple[Update, list[str]]:
        """One request's update, and remarks on it; the model is as before."""
        if self.form == "weight":
            with self.history.untouched():
                solved = apply_update_(self.history, self.constraint(found), self.second_moment)
            return solved, []
        writer = self.writer()
        made = self.made(request, found)
        with writer.module.holding(writer.module.offsets):
            [remarks] = writer.add([made])
        return made.offset, remarks

    def unreached(self, update: Update, texts: Sequence[str]) -> list[str]:
        """A remark where an edit that only fires for its subject does not in texts about it."""
        if isinstance(update, RankOneUpdate) or not texts:
            return []
        return self.writer().unreached(self.spec, update, texts)

    def keys_of(self, request: EditRequest) -> Keys:
        """The keys and values of a request on the weights as they are; nothing is searched."""
        batch = EditBatch.of(self.encoded([request]))
        [keys] = mean_keys(
            self.projection, batch, run_first_pass(self.spec, self.projection, batch)
        )
        return keys

    def offset_of(self, request: EditRequest, delta: Tensor) -> Offset:
        """An offset of a value that is known."""
        [tokens] = self.encoded([request])
        return self.writer().make(self.spec, self.form, request, tokens, delta).offset

    def encoded(self, requests: Sequence[EditRequest]) -> list[TokenizedEdit]:
        """Requests as rows of ids, with the facts of their subjects that they keep."""
        return self._encoder([(r, *self.edits.kept_facts(r)) for r in requests])
