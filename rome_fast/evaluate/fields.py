"""How one field of a record is read, whatever layout it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

from rome_fast.errors import InvalidRequestError
from rome_fast.evaluate.records import Question

NEIGHBORHOOD = ("neighborhood", "neighborhood_prompts")


def case_id_of(value: Any, position: int) -> int | str:
    """A record's own number or name; its position where there is none, as in an empty cell."""
    if value is None or value == "" or value != value:
        return position
    if isinstance(value, str):
        return value
    # A data frame has numpy's integers, or floats where a cell of the column is empty.
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if is_whole or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise InvalidRequestError(f"case_id must be a whole number or a string, got {value!r}")


def first_of(flat: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((flat[key] for key in keys if flat.get(key) is not None), None)


def text_of(value: Any) -> Any:
    """The text in ``"x"``, ``{"str": "x"}`` or ``[["x", "alias"], ...]``; messages as they are."""
    if isinstance(value, list) and all(isinstance(x, Mapping) and "role" in x for x in value):
        return value
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return value.get("str") if isinstance(value, Mapping) else value


def number_as_text(value: Any) -> Any:
    """A number as text, since years are answers too; a data frame's NaN is an empty cell."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, bool) or not isinstance(value, Real) else str(value)


def string(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequestError(f"{name} must be text, got {value!r}")
    return value


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{name} must be a dict, got {value!r}")
    return value


def listed(value: Any) -> list[Any]:
    """A list of things, or one of them; none where there is nothing."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def strings(name: str, value: Any) -> list[str]:
    """One text or a list of them; none where there is nothing."""
    if value is None or value == "":
        return []
    return [string(text, name) for text in listed(value)]


def neighborhood_of(flat: Mapping[str, Any], true: str | None) -> Iterator[Question]:
    for key in NEIGHBORHOOD:
        for item in listed(flat.get(key) or None):
            if isinstance(item, str) and true is None:
                raise InvalidRequestError(
                    f"{key} {item!r} has no answer: give target_true, or "
                    "{'prompt': ..., 'target': ...} instead of the text"
                )
            asked = {"prompt": item, "target": true} if isinstance(item, str) else item
            yield _question(key, *_pair(key, asked))
    if prompt := flat.get("locality_prompt"):
        yield _question("locality_prompt", prompt, flat.get("locality_ground_truth"))


def groups_of(
    name: str, value: Any, unanswered: Counter[str] | None = None
) -> dict[str, tuple[Question, ...]]:
    """EasyEdit's groups of questions; those without any are left out.

    Args:
        name: of the field, for messages.
        unanswered: counts, by the group, questions that are left out since they have no answer.

    Raises:
        InvalidRequestError: as ``parse_record``.
    """
    if value is None or value == "" or value == []:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{name} must be a dict of groups, got {value!r}")
    if "New Question" in value:  # zsRE and CounterFact with GPT-4's portability
        value = {"one_hop": {"prompt": value["New Question"], "target": value.get("New Answer")}}
    counts = Counter() if unanswered is None else unanswered
    groups = {group: tuple(_asked(f"{name}.{group}", of, counts)) for group, of in value.items()}
    return {group: questions for group, questions in groups.items() if questions}


def _asked(name: str, group: Any, unanswered: Counter[str]) -> Iterator[Question]:
    for item in listed(group):
        prompts, answers = _pair(name, item)
        if not isinstance(prompts, list | tuple) or len(prompts) == 1:
            prompts, answers = [text_of(prompts)], [answers]
        if not isinstance(answers, list | tuple) or len(prompts) != len(answers):
            raise InvalidRequestError(f"{name} has {len(prompts)} prompts and answers {answers!r}")
        for prompt, answer in zip(prompts, answers, strict=True):
            if str(text_of(answer) or "").strip():
                yield _question(name, prompt, answer)
            else:
                unanswered[name] += 1


def _pair(name: str, item: Any) -> tuple[Any, Any]:
    if not isinstance(item, Mapping) or not item.get("prompt"):
        raise InvalidRequestError(f"{name} must hold dicts of prompt and answer, got {item!r}")
    return item["prompt"], first_of(item, ("target", "ground_truth"))


def _question(name: str, prompt: Any, answer: Any) -> Question:
    return Question(string(text_of(prompt), name), string(text_of(answer), f"the answer to {name}"))
