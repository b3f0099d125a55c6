"""The facts that studies use: CounterFact records whose true object the model says by itself.

The others have no answer to keep. A record's neighbours are its own ``neighborhood_prompts`` and
the first of its ``derived_neighborhood_prompts``, four in all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.support.results import SHARED
from rome_fast.evaluate.records import EditRecord, Question
from rome_fast.types import EditRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COUNTERFACT = SHARED / "counterfact" / "counterfact-rome.json"
NEIGHBOURS = 4


def read_counterfact() -> list[dict[str, Any]]:
    """The raw records, in the order of the file."""
    raw: list[dict[str, Any]] = json.loads(COUNTERFACT.read_text(encoding="utf-8"))
    return raw


def record_of(raw: dict[str, Any]) -> EditRecord:
    """One raw record with four neighbours."""
    fact = raw["requested_rewrite"]
    prompts = [*raw["neighborhood_prompts"], *raw["derived_neighborhood_prompts"]][:NEIGHBOURS]
    true = fact["target_true"]["str"]
    return EditRecord(
        case_id=raw["case_id"],
        request=EditRequest(fact["prompt"], fact["subject"], fact["target_new"]["str"]),
        target_true=true,
        paraphrases=tuple(raw["paraphrase_prompts"]),
        neighborhood=tuple(Question(prompt, true) for prompt in prompts),
    )


def known_records(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, cache: Path, within: int = 1
) -> list[EditRecord]:
    """Records whose true object begins with one of the ``within`` likeliest tokens.

    Those that the model says come first. How likely each is stays in ``cache``: reading takes a
    minute.
    """
    records = [record_of(raw) for raw in read_counterfact()]
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(_ranks(model, tok, records)))
    ranks = json.loads(cache.read_text())
    chosen = [i for i, rank in enumerate(ranks) if rank < within]
    return [records[i] for i in sorted(chosen, key=lambda i: ranks[i] > 0)]


def _ranks(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, records: list[EditRecord]
) -> list[int]:
    """How many tokens are likelier than the first of each record's true object."""
    from rome_fast.evaluate.scoring import batches
    from rome_fast.prompt.logits import logits_at
    from rome_fast.prompt.target import Asked, continuations

    asked = continuations(tok, [Asked(r.request.text, str(r.target_true)) for r in records])
    ranks: dict[int, int] = {}
    for batch in batches([len(c.prompt_ids) for c in asked], 512, 64):
        rows = [tuple(asked[i].prompt_ids) for i in batch]
        logits = logits_at(model, rows, [(n, len(row) - 1) for n, row in enumerate(rows)])
        for i, each in zip(batch, logits, strict=True):
            ranks[i] = int((each > each[asked[i].target_ids[0]]).sum())
    return [ranks[i] for i in range(len(records))]
