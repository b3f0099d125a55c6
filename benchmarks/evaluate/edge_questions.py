"""Questions that the reference implementations tokenise in another way than this library."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers.processors import TemplateProcessing

from benchmarks.evaluate.reference_code import EasyEditCode, Kmeng01Code
from benchmarks.support.tables import Row
from rome_fast.evaluate.records import EditRecord, Question
from rome_fast.evaluate.scoring import score
from rome_fast.types import EditRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROMPT = "The capital of France is the city of"
QUESTIONS = {
    "plain": (_PROMPT, "Paris"),
    "space at the target's start": (_PROMPT, " Paris"),
    "space at the prompt's end": (f"{_PROMPT} ", "Paris"),
    "prompt ends in an opening quote": (f'{_PROMPT} "', "Paris"),
    "script without spaces": ("法国的首都是", "巴黎"),
}


def edge_questions(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, codes: Sequence[Any]
) -> list[Row]:
    """NLL and accuracy of each, ours and those of the codes that give them."""
    asked = [(name, tok, *question) for name, question in QUESTIONS.items()]
    asked.append(("tokenizer that adds a BOS", _with_bos(tok), *QUESTIONS["plain"]))
    return [
        {"question": name, **dict(_figures(model, own, Question(prompt, target), codes))}
        for name, own, prompt, target in asked
    ]


def _figures(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    question: Question,
    codes: Sequence[Any],
) -> Iterator[tuple[str, float]]:
    [mine] = score(model, tok, [question])
    yield "NLL", mine.nll
    yield "accuracy", mine.accuracy
    record = EditRecord(0, EditRequest(question.prompt, question.prompt[:3], question.target), "x")
    for code in codes:
        if isinstance(code, Kmeng01Code):
            [probs] = code.counterfact(model, tok, record)["rewrite_prompts_probs"]
            yield "kmeng01's NLL", probs["target_new"]
        elif isinstance(code, EasyEditCode):
            [accuracy] = code.quality(model, tok, record)["rewrite_acc"]
            yield "easyedit's accuracy", float(accuracy)


def _with_bos(tok: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that begins each text as Llama's does."""
    own = copy.deepcopy(tok)
    bos = own.bos_token
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, own.bos_token_id)]
    )
    return own
