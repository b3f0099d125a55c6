"""The facts of the arena: CounterFact, one fact a subject, those that the model knows first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.real_model.records import known_records

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.records import EditRecord

# More than any vocabulary has: all records, those that the model says coming first.
_ALL = 10**9


def arena_records(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, cache: Path
) -> list[EditRecord]:
    """One record for each subject, in the order of the arena's edits."""
    chosen: dict[str, EditRecord] = {}
    for record in known_records(model, tok, cache, _ALL):
        chosen.setdefault(record.request.subject.casefold(), record)
    return list(chosen.values())
