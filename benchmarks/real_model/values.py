"""v* of many records, found once and kept: another C or variant needs no new search.

A file a window, so that a run that is cut off goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rome_fast.model.open_model import open_model
from rome_fast.prompt.contexts import contexts_for
from rome_fast.prompt.encode import encode
from rome_fast.prompt.ends import ends_of
from rome_fast.timings import Timings
from rome_fast.update.solve import Constraint, build_constraint
from rome_fast.value.key import Keys
from rome_fast.value.window import KeyValueSearch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.records import EditRecord
    from rome_fast.hparams import RomeHparams
    from rome_fast.prompt.encode import TokenizedEdit


@dataclass(frozen=True, eq=False)
class Found:
    """One record's keys and value, and what the search took."""

    keys: Keys
    value_delta: Tensor
    losses: tuple[float, ...]
    seconds: float

    def constraint(self, variant: str) -> Constraint:
        return build_constraint(variant, self.keys, self.value_delta)


def find_values(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    records: Sequence[EditRecord],
    hparams: RomeHparams,
    folder: Path,
    *,
    templates: Sequence[str] | None = None,
    window: int = 8,
) -> list[Found]:
    """One Found a record, in order; read from ``folder`` where it is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    if templates is None:
        templates = contexts_for(model, tok, hparams)
    found: list[Found] = []
    with open_model(model) as spec:
        projection = spec.down_projection(hparams.layer)
        search = KeyValueSearch(spec, tok, projection, hparams)
        for start in range(0, len(records), window):
            part = records[start : start + window]
            path = folder / f"{_name(part, hparams, templates)}.pt"
            if not path.exists():
                began = time.perf_counter()
                edits = encoded(model, tok, part, hparams, templates)
                made = search.find(spec, edits, Timings())
                seconds = (time.perf_counter() - began) / len(part)
                rows = [
                    (asdict(f.keys), f.value.value_delta, f.value.losses, seconds) for f in made
                ]
                torch.save(rows, partial := path.with_suffix(f".{time.time_ns()}"))
                partial.rename(path)
            found += [Found(Keys(**row[0]), *row[1:]) for row in torch.load(path)]
    return found


def encoded(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    records: Sequence[EditRecord],
    hparams: RomeHparams,
    templates: Sequence[str],
) -> list[TokenizedEdit]:
    """With the ends that the requests ask for."""
    requests = [record.request for record in records]
    edits = [encode(tok, request, templates, hparams.fact_token) for request in requests]
    ends = ends_of(model, tok, requests, edits, "none")
    return [
        encode(tok, request, templates, hparams.fact_token, end_ids=end) if end else edit
        for request, edit, end in zip(requests, edits, ends, strict=True)
    ]


def _name(records: Sequence[EditRecord], hparams: RomeHparams, templates: Sequence[str]) -> str:
    """Of everything that a value depends on but the model."""
    fields = {k: v for k, v in asdict(hparams).items() if k not in ("contexts", "end")}
    fields["variant"] = "original" if hparams.variant == "original" else "another stop rule"
    asked = [asdict(r.request) for r in records]
    asked = [{k: v for k, v in a.items() if k not in ("aliases", "end") or v} for a in asked]
    key = [asked, fields, list(templates)]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
