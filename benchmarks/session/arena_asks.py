"""What else the arena asks about edited facts: answers, chats, other questions, two hops.

* answers: greedy continuations that say the target and stop there (``says``);
* in chat: the new object is the likelier of the two where an assistant begins with the prompt;
* same subject: questions of other relations about an edited subject, whose first word stays;
* two hops: what follows from the new object (the country of a city, the capital of a country) is
  likelier than what followed from the true one. Only of objects of which that is known.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.real_model.counterfact_table import says
from benchmarks.real_model.records import read_counterfact
from benchmarks.support.results import SHARED
from rome_fast.evaluate.generation import generate
from rome_fast.evaluate.records import Question
from rome_fast.evaluate.scoring import Score, encode_questions, score_encoded

if TYPE_CHECKING:
    from rome_fast.evaluate.records import EditRecord

ANSWER_TOKENS, OTHER_QUESTIONS = 8, 3
# Relations about subjects of one kind: people, places, works, organisations.
KINDS = (
    ("P103", "P140", "P937", "P1412", "P20", "P19", "P39", "P413", "P101", "P27", "P1303", "P106"),
    ("P17", "P30", "P131", "P190", "P37", "P36", "P276"),
    ("P495", "P364", "P449", "P407", "P178", "P176"),
    ("P159", "P740", "P127"),
)
HOPS = {
    "P19": "The country in which {} was born is",
    "P20": "The country in which {} died is",
    "P937": "The country in which {} worked is",
    "P159": "The country in which {} has its headquarters is",
    "P740": "The country in which {} was founded is",
    "P131": "The country in which {} lies is",
    "P276": "The country in which {} lies is",
    "P17": "The capital of the country in which {} lies is",
    "P495": "The capital of the country that {} comes from is",
    "P27": "The capital of the home country of {} is",
}


class ArenaAsks:
    """Asks about records: unedited when it is made, and again after edits."""

    def __init__(self, model: Any, tok: Any, records: Sequence[EditRecord]) -> None:
        self._model, self._tok, self._records = model, tok, records
        raw = read_counterfact()
        relation = {r["case_id"]: r["requested_rewrite"]["relation_id"] for r in raw}
        self._relations = [relation[record.case_id] for record in records]
        prompts: dict[str, str] = {}
        for case in (r["requested_rewrite"] for r in raw):
            prompts.setdefault(case["relation_id"], case["prompt"])
        self._pairs = {"chat": list(self._in_chat()), "two_hops": list(self._two_hops())}
        others = list(self._others(prompts))
        asked = [Question(prompt, " the") for prompt in others]
        self._others_encoded = encode_questions(model, tok, asked)
        self._pairs_encoded = {
            name: encode_questions(model, tok, [q for pair in pairs for q in pair])
            for name, pairs in self._pairs.items()
        }
        self._before = _first_words(score_encoded(model, self._others_encoded))

    @property
    def numbers(self) -> dict[str, int]:
        """How many questions of each kind there are."""
        return {"same_subject": len(self._before)} | {k: len(v) for k, v in self._pairs.items()}

    def now(self) -> dict[str, float]:
        """The shares, of the model as it is."""
        after = _first_words(score_encoded(self._model, self._others_encoded))
        same = [a == b for a, b in zip(after, self._before, strict=True)]
        found = {"same_subject": statistics.fmean(same), "answers": self._answers()}
        for name, encoded in self._pairs_encoded.items():
            nll = [score.nll for score in score_encoded(self._model, encoded)]
            found[name] = statistics.fmean(
                new < true for new, true in zip(nll[::2], nll[1::2], strict=True)
            )
        return found

    def _answers(self) -> float:
        prompts = [record.request.text for record in self._records]
        said = generate(self._model, self._tok, prompts, ANSWER_TOKENS)
        targets = [record.request.target for record in self._records]
        return statistics.fmean(map(says, said, targets))

    def _in_chat(self) -> Iterator[tuple[Question, Question]]:
        for record in self._records:
            asked = [{"role": "user", "content": "Complete the sentence."}]
            text = self._tok.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            prompt = text + record.request.text
            yield Question(prompt, record.request.target), Question(prompt, str(record.target_true))

    def _others(self, prompts: dict[str, str]) -> Iterator[str]:
        for record, relation in zip(self._records, self._relations, strict=True):
            kinds = [r for kind in KINDS if relation in kind for r in kind if r != relation]
            for other in kinds[:OTHER_QUESTIONS]:
                yield prompts[other].format(record.request.subject)

    def _two_hops(self) -> Iterator[tuple[Question, Question]]:
        country_of, capital_of = _known("city_in_country"), _known("country_capital_city")
        country_of |= {city: country for country, city in capital_of.items()}
        for record, relation in zip(self._records, self._relations, strict=True):
            prompt = HOPS.get(relation, "").format(record.request.subject)
            hop = capital_of if "capital" in prompt else country_of
            new = hop.get(record.request.target.strip())
            true = hop.get(str(record.target_true).strip())
            if prompt and new and true and new != true:
                yield Question(prompt, new), Question(prompt, true)


def _first_words(scores: Sequence[Score]) -> list[int]:
    return [score.argmax_ids[0] for score in scores]


def _known(name: str) -> dict[str, str]:
    path = SHARED / "relations" / "data" / "factual" / f"{name}.json"
    samples = json.loads(path.read_text("utf-8"))["samples"]
    return {sample["subject"]: sample["object"] for sample in samples}
