"""What this library says of a record, beside what the authors' own code says, number by number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from benchmarks.support.tables import Row
from rome_fast.evaluate.generation import natural_answers
from rome_fast.evaluate.metrics import case_values, questions_of
from rome_fast.evaluate.protocols import ANSWER_TOKENS, Rules
from rome_fast.evaluate.scoring import Score, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from benchmarks.evaluate.reference_code import WildCode
    from rome_fast.evaluate.records import EditRecord, Question
    from rome_fast.evaluate.result import Reading

# kmeng01's names of our groups of prompts.
GROUPS = {
    "rewrite": "rewrite_prompts",
    "rephrase": "paraphrase_prompts",
    "neighborhood": "neighborhood_prompts",
}


class Answers:
    """What the live model says to the questions of a record, as ``evaluate`` reads it.

    Args:
        before: the same of the unedited model, for what must be unchanged; None for itself.

    Attributes:
        scores: of each group of questions.
        values: the record's metrics.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        record: EditRecord,
        before: Answers | None,
    ) -> None:
        self.model, self.tok, self.record = model, tok, record
        asked = questions_of(record)
        self.scores = {name: score(model, tok, of) for name, of in asked.items()}
        self.values = case_values(self.scores, None if before is None else before.scores)

    def readings(self, context: str) -> list[tuple[Question, Reading]]:
        """Edited prompt and paraphrases, and the answers to their natural stop, judged."""
        rules = Rules(("wild",), context)
        asked = rules.questions(replace(self.record, neighborhood=()))
        prompts = [prompt for _, _, prompt in asked]
        answers = natural_answers(self.model, self.tok, prompts, ANSWER_TOKENS)
        return [
            (one[1], rules.reading(*one, answer))
            for one, answer in zip(asked, answers, strict=True)
        ]


def kmeng01_rows(counterfact: Row, zsre: Row, answers: Answers) -> Iterator[Row]:
    """NLLs in nats, a prompt and object; of zsRE whether each token is the likeliest one."""
    for group, theirs in GROUPS.items():
        for kind in ("new", "true"):
            found = [probs[f"target_{kind}"] for probs in counterfact[f"{theirs}_probs"]]
            mine = [of.nll for of in answers.scores[f"{group}_{kind}"]]
            yield from _beside("NLL", found, mine)
        wanted = "true" if group == "neighborhood" else "new"
        flags = [
            target == likeliest
            for of in answers.scores[f"{group}_{wanted}"]
            for target, likeliest in zip(of.target_ids, of.argmax_ids, strict=True)
        ]
        correct = zsre[f"{theirs}_correct"]
        yield from _beside("likeliest token", correct, flags)
        yield from _beside(f"{group}_acc", [fmean(correct)], [answers.values[f"{group}_acc"]])


def easyedit_rows(found: Row, answers: Answers) -> Iterator[Row]:
    """Accuracies, and whether each is 1, a prompt; figures a record."""
    for name in ("rewrite", "rephrase"):
        theirs, mine = found[f"{name}_acc"], answers.scores[f"{name}_new"]
        yield from _accuracies(theirs, mine)
        yield from _beside(f"{name}_acc", [fmean(theirs)], [answers.values[f"{name}_acc"]])
    for name in answers.record.portability:
        theirs, key = found["portability"][f"{name}_acc"], f"portability.{name}"
        yield from _accuracies(theirs, answers.scores[key])
        yield from _beside(key, [fmean(theirs)], [answers.values[key]])
    for name in answers.record.locality:
        tokens, key = found["locality"][f"{name}_output"], f"locality.{name}"
        for ids, asked in zip(tokens, answers.scores[key], strict=True):
            same = [float(i == j) for i, j in zip(ids, asked.argmax_ids, strict=True)]
            number = "alone" if len(tokens) == 1 else "with others"
            yield from _beside(f"token asked {number}", same, [1.0] * len(same))
        if key in answers.values:
            shares = found["locality"][f"{name}_acc"]
            yield from _beside(key, [fmean(shares)], [answers.values[key]])


def _accuracies(theirs: Sequence[float], mine: Sequence[Score]) -> Iterator[Row]:
    yield from _beside("accuracy", theirs, [of.accuracy for of in mine])
    yield from _beside("greedy", [accuracy == 1 for accuracy in theirs], [of.exact for of in mine])


def wild_rows(code: WildCode, answers: Answers) -> Iterator[Row]:
    """Verdicts by exact match, with both answers; whether these are the same to its judge.

    Neighbours are left out: their locality is another figure, and an answer takes long.
    """
    for context in code.contexts:
        suffix = "" if context == "question" else f", {context}"
        for question, reading in answers.readings(context):
            is_right, text = code.answer(answers.model, answers.tok, question, context)
            texts = {"target": question.target, "they read": text, "we read": reading.answer}
            [verdict] = _beside(f"wild_{reading.group}{suffix}", [is_right], [reading.right])
            [same] = _beside(f"answer{suffix}", [1], [code.is_same(text, reading.answer)])
            yield from ({**verdict, **texts}, {**same, **texts})


def _beside(kind: str, theirs: Sequence[float], ours: Sequence[float]) -> Iterator[Row]:
    for a, b in zip(theirs, ours, strict=True):
        yield {"kind": kind, "theirs": float(a), "ours": float(b)}
