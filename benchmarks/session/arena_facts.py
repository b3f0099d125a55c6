"""What edits of the arena are made of, found once and kept: values, keys, and signatures.

All are found on the unedited model, so that forms and policies are compared on the same ones. Where
there are more subjects than searched values, the further ones are given the values of others, in
turn: true subjects, other objects. They make the crowd; only searched ones are judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import rome_fast
from benchmarks.real_model.values import Found, find_values
from benchmarks.session.arena_records import arena_records
from benchmarks.session.arena_values import kept_deltas
from rome_fast.beside.entry import Entry, ordinary_entry
from rome_fast.beside.subject import SubjectReader
from rome_fast.edit import opened
from rome_fast.hparams import defaults_for
from rome_fast.model.activations import read_activations
from rome_fast.model.open_model import open_model
from rome_fast.model.units import HiddenUnits
from rome_fast.moment.collect.collection import ENOUGH_KEYS_OF_A_SEQUENCE
from rome_fast.moment.collect.ordinary import ordinary_second_moment
from rome_fast.prompt.encode import encode
from rome_fast.types import Offset, Signature
from rome_fast.value.batch import EditBatch
from rome_fast.value.first_pass import run_first_pass
from rome_fast.value.key import mean_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from benchmarks.session.arena_stream import Step
    from rome_fast.evaluate.records import EditRecord

_WINDOW = 4


@dataclass(frozen=True, eq=False)
class Read:
    """What a subject's rows give: its signature, and its keys [2, d_key], bare and mean."""

    signature: Signature
    keys: Tensor


class ArenaFacts:
    """Records in the order of the arena, at one layer of the real model."""

    def __init__(self, work: Path, layer: int | None) -> None:
        self.work = work
        self.model, self.tok, _ = rome_fast.demo.load("smollm2")
        self.model.requires_grad_(False)
        with open_model(self.model) as spec:
            self.hparams = defaults_for(spec, layer)[0]
        with opened(self.model, self.tok, self.hparams, None, "auto", None, "identity") as editor:
            self.contexts = editor.context_templates
        self.records = arena_records(self.model, self.tok, work / "ranks.json")
        with open_model(self.model) as spec:
            self.projection = spec.down_projection(self.hparams.layer)
            self.units = HiddenUnits.of(spec, self.projection)
            self.entry: Entry = ordinary_entry(spec, self.tok, self.units)
            self.moment = ordinary_second_moment(
                spec, self.tok, self.projection, keys_per_dim=ENOUGH_KEYS_OF_A_SEQUENCE
            )

    def search(self, n: int) -> list[Found]:
        """The values of the first ``n`` records; those that are not kept are searched."""
        found = self._kept[: n - n % _WINDOW]
        for start in range(len(found), n, _WINDOW):
            part = self.records[start : start + _WINDOW]
            options = {"templates": self.contexts, "window": _WINDOW}
            folder = self.work / "values"
            found += find_values(self.model, self.tok, part, self.hparams, folder, **options)
        return found[:n]

    @cached_property
    def _kept(self) -> list[Found]:
        """Of values that are kept with the results, and the keys, which are read anew."""
        found = []
        with open_model(self.model) as spec:
            for record, delta in zip(
                self.records, kept_deltas(self.records, self.hparams), strict=False
            ):
                edit = encode(self.tok, record.request, self.contexts, self.hparams.fact_token)
                batch = EditBatch.of([edit])
                first = run_first_pass(spec, self.projection, batch)
                [keys] = mean_keys(self.projection, batch, first)
                found.append(Found(keys, delta, (), 0.0))
        return found

    def read(self, n: int) -> list[Read]:
        """Signatures and keys of the first ``n`` records' subjects."""
        path = self.work / f"subjects-layer-{self.hparams.layer}.pt"
        kept: dict[str, Read] = torch.load(path, weights_only=False) if path.exists() else {}
        missing = [r for r in self.records[:n] if r.request.subject not in kept]
        with open_model(self.model) as spec:
            reader = SubjectReader(
                *(spec, self.tok, self.units, self.entry, self.contexts, self.hparams.fact_token)
            )
            for i, record in enumerate(missing):
                kept[record.request.subject] = self._read_one(spec, reader, record)
                if i % 200 == 199 or i == len(missing) - 1:
                    torch.save(kept, partial := path.with_suffix(".partial"))
                    partial.rename(path)
        return [kept[record.request.subject] for record in self.records[:n]]

    def offsets(self, form: str, steps: Sequence[Step]) -> list[Offset]:
        """Edits in a form beside the weight."""
        reads = self.read(1 + max(step.fact for step in steps))
        values = self.search(1 + max(step.value for step in steps))
        made = []
        for fact, value in steps:
            request = self.records[fact].request
            names = {request.subject: reads[fact].signature}
            made.append(Offset(form, request, names, values[value].value_delta))
        return made

    def _read_one(self, spec: object, reader: SubjectReader, record: EditRecord) -> Read:
        edit = encode(self.tok, record.request, self.contexts, self.hparams.fact_token)
        read = reader.read(spec, record.request, edit)  # type: ignore[arg-type]
        keys, _ = read_activations(self.model, self.projection, edit.input_ids, edit.attention_mask)
        mine = keys[torch.arange(len(edit.lookup_idx)), edit.lookup_idx]
        both = torch.stack([mine[edit.prompt_row], mine[: edit.n_contexts].mean(0)])
        return Read(read[record.request.subject].signature, both)
