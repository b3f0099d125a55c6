"""An edit under stress: behind other text, negated, asked in reverse, and the rest of its subject.

Questions beside those of ``metrics.questions_of``, scored in the same forwards; docs/metrics.md
defines every value.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rome_fast.errors import InvalidRequestError
from rome_fast.evaluate.metrics import Scores, accuracy, exact, questions_of
from rome_fast.evaluate.scoring import EncodedQuestion, encode_questions
from rome_fast.model.spec import max_positions
from rome_fast.moment.collect.ordinary import ORDINARY_TEXT
from rome_fast.prompt.request import SLOT
from rome_fast.prompt.subject import cuts_a_word, find_subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.records import EditRecord, Question
    from rome_fast.evaluate.result import CaseResult
    from rome_fast.types import EditRequest

# EAMET (arXiv 2505.11876) measures behind as many tokens.
PREFIX_TOKENS = (50, 200)
NEGATION = "It is not true that "
# Other facts of one subject: a file of nothing else would make as many questions as its square.
MOST_OTHERS = 10
# Names of portability groups: "reversal", "Reversed_Relation", "inverse_relation", ...
_REVERSE = re.compile("revers|invers", re.IGNORECASE)
_ARTICLE = re.compile(r"(The|An?)\b")


class Stress:
    """The questions of records under stress.

    Args:
        alone: whether each record is edited alone; in a sequence the other facts of its subject
            are edited too, and have no answer to keep.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        records: Sequence[EditRecord],
        *,
        alone: bool,
    ) -> None:
        self._model, self._tok, self._records = model, tok, records
        lines = ORDINARY_TEXT.read_text(encoding="utf-8").splitlines()
        self._lines = {
            chinese: [line for line in lines if _is_chinese(line) is chinese]
            for chinese in (False, True)
        }
        self._of_subject: dict[str, list[int]] = {}
        for number, record in enumerate(records if alone else ()):
            for name in {name.casefold() for name in record.request.names}:
                self._of_subject.setdefault(name, []).append(number)

    def sheet(self, number: int) -> dict[str, tuple[list[Question], list[EncodedQuestion]]]:
        """The questions of a record by purpose, without those that are too long for the model."""
        asked = {}
        for name, questions in self._questions(number):
            try:
                encoded = encode_questions(self._model, self._tok, questions)
            except InvalidRequestError:
                continue
            asked[name] = (questions, encoded)
        return asked

    def notes(self, cases: Sequence[CaseResult]) -> list[str]:
        """Remarks for the user: which prefixes could not be asked, and of how many cases."""
        stages = [case.stages["before"] for case in cases if case.stages]
        limit, found = max_positions(self._model), []
        fits = "" if limit is None else f" and fits the model's {limit} positions"
        for n_tokens in PREFIX_TOKENS:
            name = f"stress_prefix_{n_tokens}"
            if missing := sum(name not in stage.values for stage in stages):
                found.append(
                    f"{name} was not asked of {missing} of {len(stages)} cases: there is no text "
                    f"of {n_tokens} tokens that lacks the subject and the targets{fits}"
                )
        return found

    def _questions(self, number: int) -> Iterator[tuple[str, list[Question]]]:
        facts = self._records[number].facts
        rewrites = questions_of(self._records[number])["rewrite_new"]
        for n_tokens in PREFIX_TOKENS:
            prefixes = [self._prefix(fact, n_tokens) for fact in facts]
            if all(prefix is not None for prefix in prefixes):
                yield (
                    f"stress_prefix_{n_tokens}",
                    [
                        replace(rewrite, prompt=f"{prefix}\n{rewrite.prompt}")
                        for prefix, rewrite in zip(prefixes, rewrites, strict=True)
                    ],
                )
        pairs = zip(rewrites, (negation_of(fact.request) for fact in facts), strict=True)
        negated = [replace(rewrite, prompt=text) for rewrite, text in pairs if text is not None]
        if negated:
            yield "stress_negated", negated
        others = [questions_of(self._records[other]) for other in self._others(number)]
        # Without a true answer only the first place of the other one's new target is looked at.
        true = [asked["rewrite_true"][0] for asked in others if "rewrite_true" in asked]
        new = [asked["rewrite_new"][0] for asked in others if "rewrite_true" not in asked]
        if true:
            yield "stress_same_subject_true", true
        if new:
            yield "stress_same_subject_new", new

    def _prefix(self, record: EditRecord, n_tokens: int) -> str | None:
        """The end of some ordinary lines that hold neither the subject nor a target.

        Which lines follows from the fact: its prefix is the same in every evaluation.
        """
        request = record.request
        said = [*request.names, request.target, record.target_true or request.target]
        lines = self._lines[_is_chinese(request.text)]
        digest = hashlib.sha256(f"{request.subject}\n{request.prompt}".encode()).hexdigest()
        first, taken = int(digest, 16) % len(lines), ""
        for line in lines[first:] + lines[:first]:
            if any(_names(line, name) for name in said):
                continue
            taken = f"{line}\n{taken}".rstrip()
            if self._length(taken) >= n_tokens:
                # The more is cut off in front, the fewer tokens are left.
                starts = range(len(taken))
                cut = bisect_left(starts, -n_tokens, key=lambda at: -self._length(taken[at:]))
                return taken[cut:].lstrip()
        return None

    def _length(self, text: str) -> int:
        return len(self._tok(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _others(self, number: int) -> list[int]:
        """Records with another fact of the subject, the first ones of the file; each fact once."""
        record = self._records[number]
        names = {name.casefold() for name in record.request.names}
        # The others of a chain are edited with it.
        seen = {_plain(t) for fact in record.facts for t in (fact.request.text, *fact.paraphrases)}
        found: list[int] = []
        for other in sorted({i for name in names for i in self._of_subject.get(name, ())}):
            request = self._records[other].request
            # With the same new target it is the same fact in other words, and is to change.
            same_target = _plain(request.target) == _plain(record.request.target)
            if not same_target and _plain(request.text) not in seen:
                seen.add(_plain(request.text))
                found.append(other)
            if len(found) == MOST_OTHERS:
                break
        return found


def stress_values(scores: Scores, before: Scores | None = None) -> dict[str, float]:
    """The values of one case under stress, from all its scores; see ``metrics.case_values``."""
    values = {name: exact(of) for name, of in scores.items() if name.startswith("stress_prefix_")}
    if "stress_negated" in scores:
        values["stress_negated"] = 1 - exact(scores["stress_negated"])
    groups = {name: of for name, of in scores.items() if name.startswith("portability.")}
    reverse = [score for name, of in groups.items() if _REVERSE.search(name) for score in of]
    if reverse:
        values["stress_reverse"] = accuracy(reverse)
    kept = [
        np.mean(np.equal(now.argmax_ids[:places], then.argmax_ids[:places]))
        for name, places in (("stress_same_subject_true", None), ("stress_same_subject_new", 1))
        for now, then in zip(scores.get(name, ()), (before or {}).get(name, ()), strict=False)
    ]
    if kept:
        values["stress_same_subject"] = float(np.mean(kept))
    return values


def negation_of(request: EditRequest) -> str | None:
    """The prompt, negated in English; None of a question, and of what is in no Latin letters."""
    prompt = request.prompt
    letters = [char for char in prompt if char.isalpha()]
    if prompt.rstrip().endswith("?") or not all(map(_is_latin, letters)):
        return None
    if article := _ARTICLE.match(prompt):
        prompt = article[0].lower() + prompt[article.end() :]
    return NEGATION + prompt.replace(SLOT, request.subject, 1)


def _names(text: str, name: str) -> bool:
    """Whether a text holds a name as whole words, whatever the case."""
    text = text.casefold()
    place = find_subject(text, name.strip().casefold())
    return place is not None and not cuts_a_word(text, place)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _is_latin(char: str) -> bool:
    return unicodedata.name(char, "").startswith("LATIN")


def _is_chinese(text: str) -> bool:
    return any("\u4e00" <= char <= "\u9fff" for char in text)
