"""What the numbers of an evaluation depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.evaluate.protocols import PROTOCOLS, Rules
from rome_fast.model.hashes import config_hash, fingerprint, model_hash, tokenizer_hash, versions
from rome_fast.results import second_moment_name

if TYPE_CHECKING:
    from rome_fast.editor import Editor
    from rome_fast.evaluate.records import Records


def rules_of(rules: Rules) -> dict[str, Any]:
    """Of the protocols; as far as they concern what is asked."""
    answered = {"context": rules.context} if rules.lets_answer else {}
    return {"protocols": [asdict(PROTOCOLS[name]) for name in rules.protocols], **answered}


def setting_of(editor: Editor, records: Records, held_texts: Sequence[str]) -> dict[str, Any]:
    """What the numbers depend on, besides the arguments that only ``evaluate`` has; JSON-able."""
    model, projection, moment = editor.model, editor.projection, editor.second_moment
    return {
        "model": {
            "name": Path(str(model.config._name_or_path)).name,
            "class": type(model).__name__,
            "config": config_hash(model),
            "weights": model_hash(editor.spec),
            "dtype": str(projection.weight.dtype).removeprefix("torch."),
            "device": projection.weight.device.type,
            "tokenizer": tokenizer_hash(editor.tok),
        },
        "weight_name": f"{projection.name}.weight",
        "hparams": json.loads(json.dumps(asdict(editor.hparams))),
        "backend": editor.backend,
        "second_moment": "none" if editor.form != "weight" else second_moment_name(moment),
        "second_moment_hash": None if moment is None else fingerprint(moment.moment_sum),
        "context_templates": list(editor.context_templates),
        "n_records": len(records),
        "n_skipped": records.n_skipped,
        "records": hash_of([asdict(record) for record in records]),
        "held_texts": {"n": len(held_texts), "hash": hash_of(list(held_texts))},
        "versions": versions(),
    }


def hash_of(value: Any) -> str:
    """Of something JSON-able."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
