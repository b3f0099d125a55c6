"""Asks the questions of the records at every stage, and turns the answers into values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from rome_fast.errors import InvalidRequestError
from rome_fast.evaluate.drift import Drift
from rome_fast.evaluate.generation import (
    generate,
    natural_answers,
    ngram_entropy,
    reference_score,
)
from rome_fast.evaluate.metrics import Scores, case_values, questions_of, read_values
from rome_fast.evaluate.protocols import ANSWER_TOKENS, Rules
from rome_fast.evaluate.result import Answer, CaseResult, Reading, Stage
from rome_fast.evaluate.scoring import EncodedQuestion, Trial, encode_questions, score_encoded
from rome_fast.evaluate.stress import Stress, stress_values
from rome_fast.prompt.ids import decode
from rome_fast.timings import Timings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.records import EditRecord, Question
    from rome_fast.model.spec import DownProjection
    from rome_fast.prompt.chat import Chat
    from rome_fast.types import RankOneUpdate

Sheet = dict[str, list[EncodedQuestion]]


class Judge:
    """The questions of the records, and what the unedited model answers.

    Args:
        generate_tokens: length of the greedy continuations; 0 for none.
        texts: held texts, on which drift is measured; may be empty.
        rules: which protocols, and for those that let the model answer, how.
        stress: more questions of each record; None for none.

    Attributes:
        unaskable: by the record's number, why its questions cannot be asked.
        before: by the record's number, the unedited model's Stage (after ``begin``).
        timings: seconds of the phases "score", "generate", "answer" and "drift".
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        projection: DownProjection,
        records: Sequence[EditRecord],
        generate_tokens: int,
        texts: Sequence[str],
        rules: Rules,
        stress: Stress | None = None,
    ) -> None:
        self._rules, self._stress = rules, stress
        self.model, self.tok, self.records = model, tok, records
        self.timings = Timings()
        self.unaskable: dict[int, str] = {}
        self.before: dict[int, Stage] = {}
        self._projection = projection
        self.texts = texts
        self._generate_tokens = generate_tokens
        self._asked: dict[int, dict[str, list[Question]]] = {}
        self._sheets: dict[int, Sheet] = {}
        self._scores_before: dict[int, Scores] = {}
        self._drift: Drift | None = None

    def begin(self, numbers: Sequence[int], *, progress: bool) -> None:
        """Ask the unedited model the questions of these records, all at once."""
        self._encode(numbers)
        askable = list(self._sheets)
        scores = self._ask(askable, None, progress=progress)
        self._scores_before = dict(zip(askable, scores, strict=True))
        said, readings = self._continue(askable, None), self._read(askable, None)
        for number, texts, read in zip(askable, said, readings, strict=True):
            scores_before = self._scores_before[number]
            self.before[number] = self._stage(number, scores_before, texts, read, None)
        if self.texts:
            self._drift = Drift.baseline(self.model, self.tok, self.texts)
        self.timings.lap("drift")

    def stages(
        self, numbers: Sequence[int], updates: Sequence[RankOneUpdate] | None = None
    ) -> list[Stage]:
        """One Stage per record, of the model as it is now, or with each record's update tried."""
        scores = self._ask(numbers, updates)
        said, readings = self._continue(numbers, updates), self._read(numbers, updates)
        return [
            self._stage(number, answers, texts, read, self._scores_before[number])
            for number, answers, texts, read in zip(numbers, scores, said, readings, strict=True)
        ]

    def unedited(self, number: int) -> Stage:
        """The Stage "after" of a record that was not edited."""
        scores, before = self._scores_before[number], self.before[number]
        return self._stage(number, scores, before.generations, before.readings, scores)

    def retained(self, numbers: Sequence[int]) -> float:
        """Share of the edits whose new target greedy decoding says after the edited prompt."""
        asked = [question for n in numbers for question in self._sheets[n]["rewrite_new"]]
        scores = score_encoded(self.model, asked)
        self.timings.lap("score")
        return sum(score.exact for score in scores) / len(scores)

    def drift(self) -> dict[str, float]:
        """Perplexity and KL of the held texts, of the model as it is now; empty without texts."""
        measured = {} if self._drift is None else dict(self._drift.measure(self.model))
        self.timings.lap("drift")
        return measured

    def case(self, number: int, stages: Mapping[str, Stage], **facts: Any) -> CaseResult:
        """The result of a record, with its stage "before" put first."""
        record = self.records[number]
        before = {"before": self.before[number]} if number in self.before else {}
        return CaseResult(
            index=number,
            case_id=record.case_id,
            request=record.request,
            also=record.requests[1:],
            generation_prompts=self._prompts(number),
            stages={**before, **stages},
            **facts,
        )

    def notes(self, cases: Sequence[CaseResult]) -> list[str]:
        """Remarks for the user about what could not be asked of some cases."""
        return [] if self._stress is None else self._stress.notes(cases)

    def _encode(self, numbers: Sequence[int]) -> None:
        asked = {number: questions_of(self.records[number]) for number in numbers}
        self._asked = asked
        try:
            self._sheets = dict(zip(asked, self._sheets_of(asked.values()), strict=True))
        except InvalidRequestError:
            for number, questions in asked.items():
                try:
                    [self._sheets[number]] = self._sheets_of([questions])
                except InvalidRequestError as error:
                    self.unaskable[number] = str(error)
        if self._stress is not None:
            for number, sheet in self._sheets.items():
                for name, (more, encoded) in self._stress.sheet(number).items():
                    asked[number][name], sheet[name] = more, encoded

    def _sheets_of(self, asked: Iterable[Mapping[str, Sequence[Question]]]) -> list[Sheet]:
        asked = list(asked)
        flat = [q for sheet in asked for group in sheet.values() for q in group]
        encoded = encode_questions(self.model, self.tok, flat)
        return [dict(sheet) for sheet in _regrouped(encoded, asked)]

    def _ask(
        self,
        numbers: Sequence[int],
        updates: Sequence[RankOneUpdate] | None,
        *,
        progress: bool = False,
    ) -> list[Scores]:
        sheets = [self._sheets[number] for number in numbers]
        questions = [[q for group in sheet.values() for q in group] for sheet in sheets]
        scores = score_encoded(
            self.model,
            [question for asked in questions for question in asked],
            self._trial(updates, [len(asked) for asked in questions]),
            progress=progress,
        )
        self.timings.lap("score")
        return [dict(sheet) for sheet in _regrouped(scores, sheets)]

    def _continue(
        self, numbers: Sequence[int], updates: Sequence[RankOneUpdate] | None
    ) -> list[tuple[str, ...]]:
        if not (self._generate_tokens and numbers):
            return [()] * len(numbers)
        prompts = [self._prompts(number) for number in numbers]
        counts = [len(texts) for texts in prompts]
        said = iter(
            generate(
                self.model,
                self.tok,
                [text for texts in prompts for text in texts],
                self._generate_tokens,
                self._trial(updates, counts),
                [chat for number in numbers for chat in self._chats(number)],
            )
        )
        self.timings.lap("generate")
        return [tuple(islice(said, count)) for count in counts]

    def _read(
        self, numbers: Sequence[int], updates: Sequence[RankOneUpdate] | None
    ) -> list[tuple[Reading, ...]]:
        """What the model answers by itself, where a protocol asks for it."""
        if not (self._rules.lets_answer and numbers):
            return [()] * len(numbers)
        asked = [
            [question for fact in self.records[n].facts for question in self._rules.questions(fact)]
            for n in numbers
        ]
        flat = [(question, prompt) for questions in asked for _, question, prompt in questions]
        answers = natural_answers(
            self.model,
            self.tok,
            [prompt for _, prompt in flat],
            ANSWER_TOKENS,
            self._trial(updates, [len(questions) for questions in asked]),
            [question.chat for question, _ in flat],
        )
        said = iter(answers)
        found = [
            tuple(self._rules.reading(*question, next(said)) for question in questions)
            for questions in asked
        ]
        self.timings.lap("answer")
        return found

    def _trial(
        self, updates: Sequence[RankOneUpdate] | None, counts: Sequence[int]
    ) -> Trial | None:
        if updates is None:
            return None
        edit_of = [edit for edit, count in enumerate(counts) for _ in range(count)]
        return Trial(self._projection, updates, edit_of)

    def _prompts(self, number: int) -> tuple[str, ...]:
        facts = self.records[number].facts
        more = [prompt for fact in facts for prompt in fact.generation_prompts]
        return (*(fact.request.text for fact in facts), *more)

    def _chats(self, number: int) -> list[Chat | None]:
        """The chat of each prompt."""
        facts = self.records[number].facts
        more = [fact.request.conversation for fact in facts for _ in fact.generation_prompts]
        return [*(fact.request.conversation for fact in facts), *more]

    def _stage(
        self,
        number: int,
        scores: Scores,
        said: tuple[str, ...],
        readings: tuple[Reading, ...],
        before: Scores | None,
    ) -> Stage:
        values = case_values(scores, before) | read_values(readings)
        if self._stress is not None:
            values |= stress_values(scores, before)
        if said:
            texts = [a + b for a, b in zip(self._prompts(number), said, strict=True)]
            # Those that the record asks for; the edited prompts alone where it asks for none.
            facts = self.records[number].facts
            texts = texts[len(facts) :] or texts
            values["ngram_entropy"] = ngram_entropy(texts)
            if references := [text for fact in facts for text in fact.reference_texts]:
                values["reference_score"] = reference_score(texts, references)
        return Stage(values, said, self._answers(number, scores), readings)

    def _answers(self, number: int, scores: Scores) -> dict[str, tuple[Answer, ...]]:
        asked = self._asked[number]
        return {
            name: tuple(
                Answer(
                    prompt=question.prompt,
                    target=question.target,
                    prob=math.exp(sum(score.log_probs)),
                    exact=score.exact,
                    next=decode(self.tok, score.argmax_ids[:1]),
                )
                for question, score in zip(asked[name], of, strict=True)
            )
            for name, of in scores.items()
        }


def _regrouped(flat: Iterable[Any], like: Iterable[Mapping[str, Sequence[Any]]]) -> Any:
    """``flat`` grouped like the mappings ``like``: the same names, as many items under each."""
    items = iter(flat)
    for groups in like:
        yield {name: list(islice(items, len(group))) for name, group in groups.items()}
