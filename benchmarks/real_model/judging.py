"""What edits do, each alone on the unedited model: CounterFact's scores, and what leaks elsewhere.

Edits are tried without being written, many in one forward. ES, PS and NS are shares of prompts on
which the new object (for NS the true one) is the likelier of the two; greedy shares are those of
prompts that the model goes on with it by itself; unchanged is the share of neighbours whose first
words are those of the unedited model (docs/metrics.md).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.evaluate.records import Question
from rome_fast.evaluate.scoring import Score, Trial, encode_questions, score_encoded

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.records import EditRecord
    from rome_fast.evaluate.scoring import EncodedQuestion
    from rome_fast.model.spec import DownProjection
    from rome_fast.types import RankOneUpdate

Row = dict[str, Any]


@dataclass(frozen=True)
class _Asked:
    """One prompt of a record, with both objects, and the group that it is of."""

    record: int
    group: str
    prompt: str
    chosen: str
    other: str


class RealModelJudge:
    """Asks the prompts of records, unedited once, and under one update a record."""

    def __init__(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        projection: DownProjection,
        records: Sequence[EditRecord],
    ) -> None:
        self.model, self.projection, self.records = model, projection, records
        self._asked = [ask for i, record in enumerate(records) for ask in _questions(i, record)]
        questions = [Question(a.prompt, text) for a in self._asked for text in (a.chosen, a.other)]
        self._encoded = encode_questions(model, tok, questions)
        self._before = score_encoded(model, self._encoded)

    def unedited(self) -> list[Row]:
        """One row a record, of the model as it is."""
        return self._rows(self._before, range(len(self.records)))

    def now(self) -> list[Row]:
        """One row a record, of the model as its weights are now."""
        return self._rows(score_encoded(self.model, self._encoded), range(len(self.records)))

    def now_of(self, record: int) -> Row:
        """The row of one record, of the model as it is now."""
        mine = [n for n, ask in enumerate(self._asked) if ask.record == record]
        places = [place for n in mine for place in (2 * n, 2 * n + 1)]
        scores = list(self._before)
        found = score_encoded(self.model, [self._encoded[place] for place in places])
        for place, score in zip(places, found, strict=True):
            scores[place] = score
        return self._rows(scores, range(len(self.records)))[record]

    def __call__(self, updates: Sequence[RankOneUpdate | None]) -> list[Row]:
        """One row a record, each under its own update; None: the edit was refused."""
        made = [i for i, update in enumerate(updates) if update is not None]
        number = {record: n for n, record in enumerate(made)}
        mine = [n for n, ask in enumerate(self._asked) if ask.record in number]
        places = [place for n in mine for place in (2 * n, 2 * n + 1)]
        trial = Trial(
            self.projection,
            [update for update in updates if update is not None],
            [number[self._asked[place // 2].record] for place in places],
        )
        scores = list(self._before)
        asked: list[EncodedQuestion] = [self._encoded[place] for place in places]
        for place, score in zip(places, score_encoded(self.model, asked, trial), strict=True):
            scores[place] = score
        rows = self._rows(scores, range(len(self.records)))
        for row, update in zip(rows, updates, strict=True):
            row["refused"] = update is None
        return rows

    def _rows(self, scores: Sequence[Score], records: Sequence[int]) -> list[Row]:
        rows: list[Row] = [{"case_id": self.records[i].case_id} for i in records]
        for n, ask in enumerate(self._asked):
            chosen, other, before = scores[2 * n], scores[2 * n + 1], self._before[2 * n]
            row = rows[ask.record]
            for name, value in (
                ("", chosen.nll < other.nll),
                ("_magnitude", _prob(chosen) - _prob(other)),
                ("_greedy", chosen.exact),
            ):
                row.setdefault(ask.group + name, []).append(value)
            if ask.group == "NS":
                same = chosen.argmax_ids[0] == before.argmax_ids[0]
                row.setdefault("unchanged", []).append(same)
        return rows


def _questions(index: int, record: EditRecord) -> list[_Asked]:
    new, true = record.request.target, str(record.target_true)
    return [
        _Asked(index, "ES", record.request.text, new, true),
        *(_Asked(index, "PS", prompt, new, true) for prompt in record.paraphrases),
        *(_Asked(index, "NS", q.prompt, true, new) for q in record.neighborhood),
    ]


def _prob(score: Score) -> float:
    return float(torch.tensor(score.log_probs).sum().exp())


class Leak:
    """How far updates reach keys of text that has nothing to do with them.

    Args:
        keys: [n, d_key], of held text.
        values: [n, d_value], what the matrix writes there.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._scale = keys, float(values.norm(dim=1).median())

    def __call__(self, update: RankOneUpdate) -> float:
        """Root mean square of what is added, over the median norm of what is written."""
        along = self._keys @ update.u.to(self._keys)
        return float(along.square().mean().sqrt() * update.v.norm()) / self._scale


def means(rows: Sequence[Row]) -> dict[str, float]:
    """The mean over prompts of every figure of the rows."""
    names = [name for name in rows[0] if name != "case_id"]
    return {name: statistics.fmean(_flat(rows, name)) for name in names}


def interval(rows: Sequence[Row], name: str, resamples: int = 1000) -> list[float]:
    """95 % interval of a mean: a bootstrap over records, whose prompts stay together."""
    drawn = random.Random(0)
    found = sorted(
        statistics.fmean(_flat(drawn.choices(rows, k=len(rows)), name)) for _ in range(resamples)
    )
    return [found[int(0.025 * resamples)], found[int(0.975 * resamples)]]


def paired_interval(
    rows: Sequence[Row], base: Sequence[Row], name: str, resamples: int = 1000
) -> list[float]:
    """95 % interval of the mean difference of two runs over the same records."""
    drawn, numbers = random.Random(0), range(len(rows))
    found = []
    for _ in range(resamples):
        chosen = drawn.choices(numbers, k=len(rows))
        pair = [statistics.fmean(_flat([part[i] for i in chosen], name)) for part in (rows, base)]
        found.append(pair[0] - pair[1])
    found.sort()
    return [found[int(0.025 * resamples)], found[int(0.975 * resamples)]]


def _flat(rows: Sequence[Row], name: str) -> list[float]:
    values = [row[name] for row in rows]
    return [x for v in values for x in (v if isinstance(v, list) else [v])]
