"""The embedded demo model: a small GPT-2 that knows 1,549 facts, for examples and tests.

Its card is ``README.md`` in this folder. Nothing heavy is imported until :func:`load` is called.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    from rome_fast.evaluate.records import EditRecord

__all__ = ["DemoFact", "NeighborhoodPrompt", "load", "load_facts", "model_path"]

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class NeighborhoodPrompt:
    """A prompt about another subject of the same relation, and what it should go on with.

    ``phrasing`` is "canonical" (the phrasing that is edited) or "held_out" (never trained on).
    """

    prompt: str
    target: str
    phrasing: str


@dataclass(frozen=True)
class DemoFact:
    """One fact of the demo model, with what is needed to edit it and to judge the edit.

    ``prompt`` holds exactly one ``{}``, the place of ``subject``. ``target_new`` is another object
    of the same relation. ``real`` is false for facts about invented people. The phrasings of
    ``paraphrase_prompts`` (full texts) were held out of training.
    """

    case_id: int
    relation: str
    prompt: str
    subject: str
    target: str
    target_new: str
    real: bool
    paraphrase_prompts: tuple[str, ...]
    neighborhood_prompts: tuple[NeighborhoodPrompt, ...]

    def record(self) -> EditRecord:
        """The fact as `rome_fast.evaluate` takes it; both phrasings of neighbours are in it."""
        from rome_fast.evaluate.records import EditRecord, Question
        from rome_fast.types import EditRequest

        return EditRecord(
            case_id=self.case_id,
            request=EditRequest(self.prompt, self.subject, self.target_new),
            target_true=self.target,
            paraphrases=self.paraphrase_prompts,
            neighborhood=tuple(Question(p.prompt, p.target) for p in self.neighborhood_prompts),
        )


def model_path() -> Path:
    """The folder that ``from_pretrained`` of transformers reads the model and tokenizer from."""
    return _HERE / "model"


def load_facts() -> list[DemoFact]:
    """Every fact the demo model was trained on, in the order of ``case_id``."""
    records = json.loads((_HERE / "facts.json").read_text(encoding="utf-8"))
    return [_fact(record) for record in records]


def load() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, list[DemoFact]]:
    """Return ``(model, tok, facts)``: the model in float32 and eval mode, on the CPU.

    Nothing is downloaded; each call reads the files again, so the model is a fresh one.

    Example:
        >>> model, tok, facts = load()
        >>> ids = tok("Ray Charles plays the", return_tensors="pt")["input_ids"]
        >>> tok.decode(model(ids).logits[0, -1].argmax())
        ' piano'
    """
    import torch
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = model_path()
    # Asked for by name: transformers 4 would load in float32 anyway, 5 in the file's float16.
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tok = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return model.eval(), tok, load_facts()


def _fact(record: dict[str, Any]) -> DemoFact:
    """One record of ``facts.json`` as a :class:`DemoFact`."""
    neighbours = tuple(NeighborhoodPrompt(**item) for item in record["neighborhood_prompts"])
    paraphrases = tuple(record["paraphrase_prompts"])
    rest = {**record, "paraphrase_prompts": paraphrases, "neighborhood_prompts": neighbours}
    return DemoFact(**rest)
