"""RippleEdits: its facts are sentences, which are taken apart, and its tests are criteria.

A record names its subject and target by numbers of Wikidata alone. Its sentences are of few forms;
one of another form is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rome_fast.errors import InvalidRequestError
from rome_fast.evaluate.fields import listed, mapping, string

# How each criterion is judged. Both spellings of the first one are published.
_KINDS = {
    "Relation_Specificity": "locality",
    "Relation_Specifity": "locality",
    "Forgetfulness": "locality",
    "Logical_Generalization": "portability",
    "Compositionality_I": "portability",
    "Compositionality_II": "portability",
    "Subject_Aliasing": "portability",
}
CRITERIA = tuple(_KINDS)

# A relation is in small letters and ends before the first "of"; some have one in their own name.
_RELATION = r"[a-z' ]+?(?: of (?:birth|death|burial|citizenship|work|state|government))?"
# What stands before the subject, and between it and the target.
_FORMS = (
    (r"The names? of the [a-z ]+ which ", r" (?:is [a-z ]+ (?:with|of)|plays in) is"),
    (r"The name of the [a-z ]+ held by ", r" is"),
    (r"The name of the award ", r" won is"),
    (r"The (?:name of the )?currency in ", r" is"),
    (r"The number of children ", r" has is"),
    (rf"[Tt]he (?:names? of the )?(?!names? ){_RELATION} of ", r" (?:is|are)"),
    (r"", r" (?:follows|is followed by)"),
)
# With the shortest subject, and with the longest one: they differ where it, or the target, holds
# the word between the two itself.
_PATTERNS = tuple(
    [
        re.compile(rf"({before})(\S{subject})({after}) (?!\.$)(\S.*?)\.?")
        for subject in (".*?", ".*")
    ]
    for before, after in _FORMS
)


def ripple_edits(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record -> the same as a "flat" one.

    Raises:
        InvalidRequestError: its sentences are of another form, or it is malformed.
    """
    edit = mapping(raw.get("edit"), "edit")
    original = edit.get("original_fact")
    if original is not None:
        original = string(mapping(original, "original_fact").get("prompt"), "original_fact").strip()
    before, subject, after, target = _taken_apart(string(edit.get("prompt"), "edit"), original)
    groups: dict[str, dict[str, Any]] = {"locality": {}, "portability": {}}
    for name, kind in _KINDS.items():
        groups[kind][name] = list(_questions(name, raw.get(name)))
    true = original and original.removeprefix(before + subject + after).strip().removesuffix(".")
    return {
        **raw,
        **groups,
        "prompt": f"{before}{{}}{after}",
        "subject": subject,
        "target_new": target,
        "target_true": true,
    }


def _taken_apart(sentence: str, original: str | None) -> tuple[str, ...]:
    """(text before the subject, subject, text between it and the target, target).

    Args:
        original: the sentence with the true target, which is the same up to there.
    """
    for patterns in _PATTERNS:
        found = [match for p in patterns if (match := p.fullmatch(sentence.strip()))]
        if original is not None:
            found = [m for m in found if original.startswith(sentence.strip()[: m.end(3)] + " ")]
        splits = {match.groups() for match in found}
        if len(splits) == 1 or (splits and original is not None):
            return found[-1].groups()
        if splits:
            break
    with_original = "" if original is None else f" with original_fact {original!r}"
    raise InvalidRequestError(
        f"edit {sentence!r}{with_original} is of no known form, its subject cannot be told: give "
        "the record in the flat layout, with prompt, subject and target_new"
    )


def _questions(name: str, tests: Any) -> Iterator[Mapping[str, Any]]:
    """All questions of a criterion's tests, each with the first of its answers."""
    for test in listed(tests):
        for query in listed(mapping(test, name).get("test_queries")):
            asked = mapping(query, name)
            answers = [
                mapping(answer, name).get("value") for answer in listed(asked.get("answers"))
            ]
            yield {"prompt": asked.get("prompt"), "ground_truth": [a for a in answers if a]}
