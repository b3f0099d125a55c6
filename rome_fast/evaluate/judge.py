"""What the model says of the records at every stage, turned into values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rome_fast.evaluate.asking import Asker, Said
from rome_fast.evaluate.drift import Drift
from rome_fast.evaluate.generation import ngram_entropy, reference_score
from rome_fast.evaluate.metrics import Scores, case_values, read_values
from rome_fast.evaluate.result import Answer, CaseResult, Stage
from rome_fast.evaluate.stress import Stress, stress_values
from rome_fast.prompt.ids import decode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.journal import Journal
    from rome_fast.evaluate.protocols import Rules
    from rome_fast.evaluate.records import EditRecord
    from rome_fast.model.spec import DownProjection
    from rome_fast.types import RankOneUpdate

# Records that are asked before what they say is kept.
_AT_ONCE = 16


class Judge(Asker):
    """The questions of the records, and what the unedited model answers.

    Args:
        generate_tokens: length of the greedy continuations; 0 for none.
        texts: held texts, on which drift is measured; may be empty.
        rules: which protocols, and for those that let the model answer, how.
        stress: more questions of each record; None for none.

    Attributes:
        before: by the record's number, the unedited model's Stage (after ``begin``).
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
        super().__init__(model, tok, projection, records, generate_tokens, rules, stress)
        self.before: dict[int, Stage] = {}
        self.texts = texts
        self._scores_before: dict[int, Scores] = {}
        self._drift: Drift | None = None

    def begin(
        self, numbers: Sequence[int], journal: Journal, advance: Callable[[int], object]
    ) -> None:
        """Ask the unedited model the questions of these records, but for those in the journal.

        Args:
            advance: called with the number of records that have been asked.
        """
        self.encode(numbers)
        for number, said in self._kept("before", list(self.sheets), journal, advance):
            self._scores_before[number] = said.scores
            self.before[number] = self._stage(number, said, None)
        if self.texts:
            self._drift = Drift.baseline(self.model, self.tok, self.texts)
        self.timings.lap("drift")

    def at_the_end(
        self, numbers: Sequence[int], journal: Journal, advance: Callable[[int], object]
    ) -> dict[int, Stage]:
        """The Stage of each record of the model as it is now, but for those in the journal."""
        return {
            number: self._stage(number, said, self._scores_before[number])
            for number, said in self._kept("after", numbers, journal, advance)
        }

    def stages(
        self, numbers: Sequence[int], updates: Sequence[RankOneUpdate] | None = None
    ) -> list[Stage]:
        """One Stage per record, of the model as it is now, or with each record's update tried."""
        return [
            self._stage(number, said, self._scores_before[number])
            for number, said in zip(numbers, self.said(numbers, updates), strict=True)
        ]

    def unedited(self, number: int) -> Stage:
        """The Stage "after" of a record that was not edited."""
        scores, before = self._scores_before[number], self.before[number]
        return self._stage(number, Said(scores, before.generations, before.readings), scores)

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
            generation_prompts=self.prompts(number),
            stages={**before, **stages},
            **facts,
        )

    def notes(self, cases: Sequence[CaseResult]) -> list[str]:
        """Remarks for the user about what could not be asked of some cases."""
        return [] if self._stress is None else self._stress.notes(cases)

    def _kept(
        self,
        stage: str,
        numbers: Sequence[int],
        journal: Journal,
        advance: Callable[[int], object],
    ) -> Iterator[tuple[int, Said]]:
        """What the model says of each record, asked and kept some at a time."""
        for start in range(0, len(numbers), _AT_ONCE):
            part = numbers[start : start + _AT_ONCE]
            missing = [number for number in part if (stage, number) not in journal.said]
            journal.add_said(stage, dict(zip(missing, self.said(missing, None), strict=True)))
            advance(len(part))
            yield from ((number, journal.said[stage, number]) for number in part)

    def _stage(self, number: int, said: Said, before: Scores | None) -> Stage:
        values = case_values(said.scores, before) | read_values(said.readings)
        if self._stress is not None:
            values |= stress_values(said.scores, before)
        if said.generations:
            pairs = zip(self.prompts(number), said.generations, strict=True)
            texts = [prompt + text for prompt, text in pairs]
            # Those that the record asks for; the edited prompts alone where it asks for none.
            facts = self.records[number].facts
            texts = texts[len(facts) :] or texts
            values["ngram_entropy"] = ngram_entropy(texts)
            if references := [text for fact in facts for text in fact.reference_texts]:
                values["reference_score"] = reference_score(texts, references)
        return Stage(values, said.generations, self._answers(number, said.scores), said.readings)

    def _answers(self, number: int, scores: Scores) -> dict[str, tuple[Answer, ...]]:
        asked = self.questions[number]
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
