"""Trial edits in one layer: each request is edited alone, judged by its questions, and undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from rome_fast.editor import Editor
from rome_fast.errors import EditRejectedError, NonFiniteError
from rome_fast.evaluate.records import EditRecord, Question
from rome_fast.evaluate.scoring import (
    EncodedQuestion,
    Score,
    Trial,
    encode_questions,
    score_encoded,
)
from rome_fast.locate.plan import LayerTrial
from rome_fast.types import RankOneUpdate
from rome_fast.value.optimize import NOT_CONVERGED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rome_fast.hparams import RomeHparams
    from rome_fast.model.spec import ModelSpec
    from rome_fast.moment.second_moment import SecondMoment
    from rome_fast.types import EditResult

# Prompts of other requests that stand in for neighbours.
N_OTHERS = 4


class Trials:
    """The requests, and the questions that each of their edits is asked.

    Attributes:
        own_neighbors: whether each record brings prompts about other subjects.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tok: PreTrainedTokenizerBase,
        records: Sequence[EditRecord],
        context_templates: Sequence[str],
    ) -> None:
        self.spec, self.tok, self.records = spec, tok, records
        self.own_neighbors = all(map(_neighbors, records))
        self._context_templates = context_templates
        self._paraphrases = [_first_tokens(spec, tok, r, r.request.target) for r in records]
        self._neighbors = [
            _neighbors(record) or list(_others(i, records)) for i, record in enumerate(records)
        ]
        self._before = self._score(self._neighbors, None)
        self._usual = self._answers_instead()

    def run(
        self,
        hparams: RomeHparams,
        second_moment: SecondMoment | str | Path,
        done: Callable[[], object],
    ) -> LayerTrial:
        """Edit each request alone in the layer of ``hparams``; the weights' bits are kept.

        Args:
            second_moment: as ``edit`` takes it.
            done: called after each edit.
        """
        editor = Editor(self.spec, self.tok, hparams, None, "auto")
        editor.prepare(self._context_templates, second_moment)
        results: dict[int, EditResult] = {}
        failures = []
        for i, record in enumerate(self.records):
            try:
                [results[i]] = editor.edit([record.request], strict=False)
            except (EditRejectedError, NonFiniteError) as error:
                failures.append(f"{record.request.asked!r}: {error}")
            finally:
                editor.history.rewind(0)
            done()
        return self._judged(editor, results, failures)

    def _judged(
        self, editor: Editor, results: dict[int, EditResult], failures: Sequence[str]
    ) -> LayerTrial:
        n_made = len(results)
        paraphrases = locality = None
        if results:
            paraphrases, locality = self._asked(editor, results)
        losses = [result.losses[-1] for result in results.values()]
        norms = [result.relative_norm for result in results.values()]
        return LayerTrial(
            layer=editor.projection.layer,
            n_requests=len(self.records),
            success=sum(r.success for r in results.values()) / len(self.records),
            paraphrase=paraphrases,
            locality=locality,
            relative_norm=sum(norms) / n_made if n_made else None,
            loss=sum(losses) / n_made if n_made else None,
            unconverged=sum(loss >= NOT_CONVERGED for loss in losses),
            failures=tuple(failures),
        )

    def _asked(
        self, editor: Editor, results: dict[int, EditResult]
    ) -> tuple[float | None, float | None]:
        """(paraphrase, locality) of the updates, which are tried without being written again."""
        number = {i: n for n, i in enumerate(results)}
        edit_of = [number.get(i, -1) for i in range(len(self.records))]
        updates = [r.update for r in results.values() if isinstance(r.update, RankOneUpdate)]

        def trial(questions: Sequence[Sequence[object]]) -> Trial:
            rows = [edit_of[i] for i, asked in enumerate(questions) for _ in asked]
            return Trial(editor.projection, updates, rows)

        asked = trial(self._paraphrases)
        said, usual = (self._score_encoded(q, asked) for q in (self._paraphrases, self._usual))
        prefers = [
            [new.nll <= old.nll for new, old in zip(*pair, strict=True)]
            for pair in zip(said, usual, strict=True)
        ]
        after = self._score(self._neighbors, trial(self._neighbors))
        stays = [
            [b.argmax_ids == a.argmax_ids for b, a in zip(*pair, strict=True)]
            for pair in zip(self._before, after, strict=True)
        ]
        return _mean_of_means(prefers), _mean_of_means(stays)

    def _answers_instead(self) -> list[list[EncodedQuestion]]:
        """The paraphrases with the true objects, or with what the unedited model says itself."""
        said = self._score_encoded(self._paraphrases, None)
        return [
            _first_tokens(self.spec, self.tok, record, record.target_true)
            if record.target_true
            else [EncodedQuestion(q.prompt_ids, s.argmax_ids) for q, s in zip(*pair, strict=True)]
            for record, *pair in zip(self.records, self._paraphrases, said, strict=True)
        ]

    def _score(
        self, questions: Sequence[Sequence[Question]], trial: Trial | None
    ) -> list[list[Score]]:
        """Scores of each request's questions, in order."""
        flat = [question for asked in questions for question in asked]
        encoded = iter(encode_questions(self.spec.model, self.tok, flat))
        parts = [list(islice(encoded, len(asked))) for asked in questions]
        return self._score_encoded(parts, trial)

    def _score_encoded(
        self, questions: Sequence[Sequence[EncodedQuestion]], trial: Trial | None
    ) -> list[list[Score]]:
        flat = [question for asked in questions for question in asked]
        scores = iter(score_encoded(self.spec.model, flat, trial))
        return [list(islice(scores, len(asked))) for asked in questions]


def _first_tokens(
    spec: ModelSpec, tok: PreTrainedTokenizerBase, record: EditRecord, answer: str
) -> list[EncodedQuestion]:
    """A record's paraphrases, with the first token of an answer."""
    asked = [Question(text, answer) for text in record.paraphrases]
    found = encode_questions(spec.model, tok, asked)
    return [EncodedQuestion(ids.prompt_ids, ids.target_ids[:1]) for ids in found]


def _neighbors(record: EditRecord) -> list[Question]:
    groups = (question for group in record.locality.values() for question in group)
    return [*record.neighborhood, *groups]


def _others(index: int, records: Sequence[EditRecord]) -> Iterator[Question]:
    """Prompts of the next few requests about other subjects, each with its own new target.

    The target only says how many tokens to compare: what counts is that they do not change.
    """
    subject = records[index].request.subject
    following = islice(cycle(records), index + 1, index + len(records))
    others = (record for record in following if record.request.subject != subject)
    return (record.rewrite for record in islice(others, N_OTHERS))


def _mean_of_means(parts: Sequence[Sequence[bool]]) -> float | None:
    means = [sum(part) / len(part) for part in parts if part]
    return sum(means) / len(means) if means else None
