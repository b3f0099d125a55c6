"""Puts the questions of the records to the model: scores, continuations, and free answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from rome_fast.errors import InvalidRequestError
from rome_fast.evaluate.generation import encode_prompts, generate, natural_answers
from rome_fast.evaluate.metrics import Scores, questions_of
from rome_fast.evaluate.protocols import ANSWER_TOKENS, Rules
from rome_fast.evaluate.result import Reading
from rome_fast.evaluate.scoring import (
    EncodedQuestion,
    Score,
    Trial,
    encode_questions,
    score_encoded,
)
from rome_fast.timings import Timings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.records import EditRecord, Question
    from rome_fast.evaluate.stress import Stress
    from rome_fast.model.spec import DownProjection
    from rome_fast.prompt.chat import Chat
    from rome_fast.types import RankOneUpdate

Sheet = dict[str, list[EncodedQuestion]]


@dataclass(frozen=True)
class Said:
    """What the model says of one record.

    Attributes:
        scores: of its questions, by their names.
        generations: continuations of its prompts.
        readings: its free answers, judged by their words.
    """

    scores: Scores
    generations: tuple[str, ...]
    readings: tuple[Reading, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Said:
        scores = {
            name: [Score(*map(tuple, score.values())) for score in of]
            for name, of in fields["scores"].items()
        }
        readings = tuple(Reading(**reading) for reading in fields["readings"])
        return cls(scores, tuple(fields["generations"]), readings)


class Asker:
    """The questions of the records, and the model that they are put to.

    Args:
        generate_tokens: length of the greedy continuations; 0 for none.
        rules: which protocols, and for those that let the model answer, how.
        stress: more questions of each record; None for none.

    Attributes:
        unaskable: by the record's number, why its questions cannot be asked.
        n_answers: answers that were read, of whatever kind.
        timings: seconds of the phases "score", "generate" and "answer".
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        projection: DownProjection,
        records: Sequence[EditRecord],
        generate_tokens: int,
        rules: Rules,
        stress: Stress | None,
    ) -> None:
        self.model, self.tok, self.records = model, tok, records
        self.timings = Timings()
        self.n_answers = 0
        self.unaskable: dict[int, str] = {}
        self.questions: dict[int, dict[str, list[Question]]] = {}
        self.sheets: dict[int, Sheet] = {}
        self._projection, self._generate_tokens = projection, generate_tokens
        self._rules, self._stress = rules, stress

    def encode(self, numbers: Sequence[int]) -> None:
        """Prepare the questions of these records."""
        asked = {number: questions_of(self.records[number]) for number in numbers}
        self.questions = asked
        try:
            self.sheets = dict(zip(asked, self._sheets_of(asked.values()), strict=True))
        except InvalidRequestError:
            for number, questions in asked.items():
                try:
                    [self.sheets[number]] = self._sheets_of([questions])
                except InvalidRequestError as error:
                    self.unaskable[number] = str(error)
        for number in list(self.sheets):
            try:
                self._check_prompts(number)
            except InvalidRequestError as error:
                self.unaskable[number] = str(error)
                del self.sheets[number]
        if self._stress is not None:
            for number, sheet in self.sheets.items():
                for name, (more, encoded) in self._stress.sheet(number).items():
                    asked[number][name], sheet[name] = more, encoded

    def _check_prompts(self, number: int) -> None:
        """Raise InvalidRequestError if the model cannot go on after one of a record's prompts."""
        prompts, chats = [], []
        if self._generate_tokens:
            prompts, chats = list(self.prompts(number)), self._chats(number)
        for _, question, prompt in self._free(number):
            prompts.append(prompt)
            chats.append(question.chat)
        encode_prompts(self.model, self.tok, prompts, chats)

    def _sheets_of(self, asked: Iterable[Mapping[str, Sequence[Question]]]) -> list[Sheet]:
        asked = list(asked)
        flat = [q for sheet in asked for group in sheet.values() for q in group]
        encoded = encode_questions(self.model, self.tok, flat)
        return [dict(sheet) for sheet in _regrouped(encoded, asked)]

    def retained(self, numbers: Sequence[int]) -> float:
        """Share of the edits whose new target greedy decoding says after the edited prompt."""
        asked = [question for n in numbers for question in self.sheets[n]["rewrite_new"]]
        scores = score_encoded(self.model, asked)
        self.timings.lap("score")
        return sum(score.exact for score in scores) / len(scores)

    def said(self, numbers: Sequence[int], updates: Sequence[RankOneUpdate] | None) -> list[Said]:
        """What the model says of each record as it is now, or with each one's update tried."""
        asked = self._ask(numbers, updates), self._continue(numbers, updates)
        return [Said(*all_) for all_ in zip(*asked, self._read(numbers, updates), strict=True)]

    def _ask(self, numbers: Sequence[int], updates: Sequence[RankOneUpdate] | None) -> list[Scores]:
        sheets = [self.sheets[number] for number in numbers]
        questions = [[q for group in sheet.values() for q in group] for sheet in sheets]
        scores = score_encoded(
            self.model,
            [question for asked in questions for question in asked],
            self._trial(updates, [len(asked) for asked in questions]),
        )
        self.n_answers += len(scores)
        self.timings.lap("score")
        return [dict(sheet) for sheet in _regrouped(scores, sheets)]

    def _continue(
        self, numbers: Sequence[int], updates: Sequence[RankOneUpdate] | None
    ) -> list[tuple[str, ...]]:
        if not (self._generate_tokens and numbers):
            return [()] * len(numbers)
        prompts = [self.prompts(number) for number in numbers]
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
        self.n_answers += sum(counts)
        self.timings.lap("generate")
        return [tuple(islice(said, count)) for count in counts]

    def _read(
        self, numbers: Sequence[int], updates: Sequence[RankOneUpdate] | None
    ) -> list[tuple[Reading, ...]]:
        """What the model answers by itself, where a protocol asks for it."""
        if not (self._rules.lets_answer and numbers):
            return [()] * len(numbers)
        asked = [self._free(number) for number in numbers]
        flat = [(question, prompt) for questions in asked for _, question, prompt in questions]
        answers = natural_answers(
            self.model,
            self.tok,
            [prompt for _, prompt in flat],
            ANSWER_TOKENS,
            self._trial(updates, [len(questions) for questions in asked]),
            [question.chat for question, _ in flat],
        )
        self.n_answers += len(answers)
        said = iter(answers)
        found = [
            tuple(self._rules.reading(*question, next(said)) for question in questions)
            for questions in asked
        ]
        self.timings.lap("answer")
        return found

    def _free(self, number: int) -> list[tuple[str, Question, str]]:
        """(group, question, the prompt as it is put) of what the model answers by itself."""
        if not self._rules.lets_answer:
            return []
        return [
            asked for fact in self.records[number].facts for asked in self._rules.questions(fact)
        ]

    def _trial(
        self, updates: Sequence[RankOneUpdate] | None, counts: Sequence[int]
    ) -> Trial | None:
        if updates is None:
            return None
        edit_of = [edit for edit, count in enumerate(counts) for _ in range(count)]
        return Trial(self._projection, updates, edit_of)

    def prompts(self, number: int) -> tuple[str, ...]:
        """What the record's continuations begin with."""
        facts = self.records[number].facts
        more = [prompt for fact in facts for prompt in fact.generation_prompts]
        return (*(fact.request.text for fact in facts), *more)

    def _chats(self, number: int) -> list[Chat | None]:
        """The chat of each prompt."""
        facts = self.records[number].facts
        more = [fact.request.conversation for fact in facts for _ in fact.generation_prompts]
        return [*(fact.request.conversation for fact in facts), *more]


def _regrouped(flat: Iterable[Any], like: Iterable[Mapping[str, Sequence[Any]]]) -> Any:
    """``flat`` grouped like the mappings ``like``: the same names, as many items under each."""
    items = iter(flat)
    for groups in like:
        yield {name: list(islice(items, len(group))) for name, group in groups.items()}
