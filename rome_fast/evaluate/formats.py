"""The layouts that records are published in, and how one record of each is read.

Four layouts, told apart by their keys. If several spellings of a field are there, the first one
counts; if a prompt has several answers (aliases), the first one, as in EasyEdit.

``"counterfact"``: CounterFact and multi-CounterFact (kmeng01/rome, memit). The request lies under
    ``requested_rewrite``; ``neighborhood_prompts`` are answered with ``target_true``.
``"flat"``: the request lies at the top. EasyEdit's CounterFact and request dict, KnowEdit (ZsRE,
    WikiData counterfact and recent, WikiBio), FastEdit, lists of kmeng01/rome's requests,
    counterfact-tracing, and JSONL or CSV with an EditRecord's own field names:

    ======================  ====================================================================
    ``prompt``              ``prompt``, ``text``
    ``subject``             ``subject``, ``concept``; may be left out beside a ``span``
    as in an EditRequest    ``chat``, ``chat_template_kwargs``, ``span``, ``space``; ``prompt`` may
                            also be a list of messages
    ``target_new``          ``target_new``, ``target``, ``target_false``, ``labels``
    ``target_true``         ``target_true``, ``ground_truth``
    ``paraphrases``         ``paraphrases``, ``paraphrase_prompts``, ``rephrase_prompt``,
                            ``rephrase_prompts``, ``queries``: one text or a list
    ``neighborhood``        ``neighborhood``, ``neighborhood_prompts``: texts that are answered with
                            ``target_true``, or ``{prompt, target}``; ``locality_prompt`` with
                            ``locality_ground_truth``
    ``locality``            {group: questions}, either a list of ``{prompt, ground_truth}`` or one
    ``portability``         dict of two lists
    ``generation_prompts``  ``generation_prompts``, ``queries``
    ``reference_texts``     ``reference_texts``
    ======================  ====================================================================

``"zsre"``: zsRE in MEND's layout (``src``, ``alt``, ``answers``, ``rephrase``, ``loc``). The new
    target is ``alt``, as the data set's own ``cond`` says and EasyEdit does; ``answers[0]`` is the
    true answer.
``"zsre_rome"``: the same file as kmeng01/rome and memit read it: ``answers[0]`` is the new target,
    and a question mark is added to ``loc``. Their published zsRE figures use this layout.

Keys that are not named here are ignored: ``attribute_prompts`` of CounterFact, its identifiers,
and the ``derived_neighborhood_prompts`` that some copies of it add, which no published figure
uses. A question of a locality or portability group without an answer is left out, as by EasyEdit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from rome_fast.errors import InvalidRequestError
from rome_fast.evaluate.records import EditRecord, Question
from rome_fast.types import EditRequest

_TEXTS = {
    "paraphrases": (
        "paraphrases",
        "paraphrase_prompts",
        "rephrase_prompt",
        "rephrase_prompts",
        "queries",
    ),
    "generation_prompts": ("generation_prompts", "queries"),
    "reference_texts": ("reference_texts",),
}
_ONE = {
    "prompt": ("prompt", "text"),
    "subject": ("subject", "concept"),
    "target_new": ("target_new", "target", "target_false", "labels"),
    "target_true": ("target_true", "ground_truth"),
}
_NEIGHBORHOOD = ("neighborhood", "neighborhood_prompts")
_GROUPS = ("locality", "portability")
_FORM = ("chat", "chat_template_kwargs", "span", "space")

# CSV cells of these columns may hold JSON, since plain text cannot hold a list.
JSON_COLUMNS = frozenset({*(key for keys in _TEXTS.values() for key in keys), *_NEIGHBORHOOD})
JSON_COLUMNS |= frozenset({*_GROUPS, *_FORM})


@dataclass(frozen=True)
class Format:
    """One layout.

    Attributes:
        keys: groups of keys; a record of this layout has one key of each group.
        flatten: a record of it -> the same as a "flat" one.
    """

    keys: tuple[tuple[str, ...], ...]
    flatten: Callable[[Mapping[str, Any]], Mapping[str, Any]]

    def matches(self, raw: Mapping[str, Any]) -> bool:
        """Whether a record has the keys of this layout."""
        return all(any(key in raw for key in group) for group in self.keys)

    def __str__(self) -> str:
        return ", ".join("|".join(group) for group in self.keys)


def _counterfact(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    request = raw.get("requested_rewrite")
    if not isinstance(request, Mapping):
        raise InvalidRequestError(f"requested_rewrite must be a dict, got {request!r}")
    return {**raw, **request}


def _zsre(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        **raw,
        "prompt": raw.get("src"),
        "target_new": raw.get("alt"),
        "target_true": raw.get("answers"),
        "paraphrases": raw.get("rephrase"),
        "locality_prompt": raw.get("loc"),
        "locality_ground_truth": raw.get("loc_ans"),
    }


def _zsre_rome(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    loc = raw.get("loc")
    return {
        **_zsre(raw),
        "target_new": raw.get("answers"),
        "target_true": None,
        "locality_prompt": loc and f"{loc}?",
    }


# In the order in which they are tried: the first one that matches is taken.
FORMATS = {
    "counterfact": Format((("requested_rewrite",),), _counterfact),
    "zsre": Format((("subject",), ("src",), ("alt",)), _zsre),
    "zsre_rome": Format((("subject",), ("src",), ("answers",)), _zsre_rome),
    "flat": Format(
        (_ONE["prompt"], (*_ONE["subject"], "span"), _ONE["target_new"]), lambda raw: raw
    ),
}


def parse_record(raw: Mapping[str, Any], layout: Format, case_id: int) -> EditRecord:
    """Read one record; ``case_id`` is for one that has none of its own.

    Raises:
        InvalidRequestError: something is missing or malformed; the message is the reason.
    """
    flat = layout.flatten(raw)
    one = {name: _text(_first(flat, keys)) for name, keys in _ONE.items()}
    true = one.pop("target_true") or None
    # An empty cell of a CSV counts as absent.
    form = {key: flat.get(key) for key in _FORM if flat.get(key) != ""}
    if form.get("span") is not None and one["subject"] is None:
        one["subject"] = ""
    if missing := [name for name, value in one.items() if value is None]:
        raise InvalidRequestError(
            f"{', '.join(missing)} missing; it has "
            + ", ".join(str(key) for key, value in flat.items() if value is not None)
        )
    groups: dict[str, Any] = {name: parse_groups(name, flat.get(name)) for name in _GROUPS}
    texts: dict[str, Any] = {
        name: tuple(text for key in keys for text in _strings(key, flat.get(key)))
        for name, keys in _TEXTS.items()
    }
    return EditRecord(
        case_id=_case_id(flat.get("case_id"), case_id),
        request=EditRequest(one["prompt"], one["subject"], one["target_new"], **form),
        target_true=None if true is None else _string(true, "target_true"),
        neighborhood=tuple(_neighborhood(flat, true)),
        **groups,
        **texts,
    )


def _case_id(value: Any, position: int) -> int | str:
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


def _first(flat: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((flat[key] for key in keys if flat.get(key) is not None), None)


def _text(value: Any) -> Any:
    """The text in ``"x"``, ``{"str": "x"}`` or ``[["x", "alias"], ...]``; messages as they are."""
    if isinstance(value, list) and all(isinstance(x, Mapping) and "role" in x for x in value):
        return value
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return value.get("str") if isinstance(value, Mapping) else value


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequestError(f"{name} must be text, got {value!r}")
    return value


def _strings(name: str, value: Any) -> list[str]:
    """One text or a list of them; none where there is nothing."""
    if value is None or value == "":
        return []
    values = value if isinstance(value, list | tuple) else [value]
    return [_string(text, name) for text in values]


def _neighborhood(flat: Mapping[str, Any], true: str | None) -> Iterator[Question]:
    for key in _NEIGHBORHOOD:
        value = flat.get(key) or []
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, str) and true is None:
                raise InvalidRequestError(
                    f"{key} {item!r} has no answer: give target_true, or "
                    "{'prompt': ..., 'target': ...} instead of the text"
                )
            asked = {"prompt": item, "target": true} if isinstance(item, str) else item
            yield _question(key, *_pair(key, asked))
    if prompt := flat.get("locality_prompt"):
        yield _question("locality_prompt", prompt, flat.get("locality_ground_truth"))


def parse_groups(name: str, value: Any) -> dict[str, tuple[Question, ...]]:
    """EasyEdit's groups of questions; those without any are left out.

    Args:
        name: of the field, for messages.

    Raises:
        InvalidRequestError: as ``parse_record``.
    """
    if value is None or value == "" or value == []:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{name} must be a dict of groups, got {value!r}")
    if "New Question" in value:  # zsRE and CounterFact with GPT-4's portability
        value = {"one_hop": {"prompt": value["New Question"], "target": value.get("New Answer")}}
    groups = {group: tuple(_asked(f"{name}.{group}", of)) for group, of in value.items()}
    return {group: questions for group, questions in groups.items() if questions}


def _asked(name: str, group: Any) -> Iterator[Question]:
    items = group if isinstance(group, list | tuple) else [] if group is None else [group]
    for item in items:
        prompts, answers = _pair(name, item)
        if not isinstance(prompts, list | tuple) or len(prompts) == 1:
            prompts, answers = [_text(prompts)], [answers]
        if not isinstance(answers, list | tuple) or len(prompts) != len(answers):
            raise InvalidRequestError(f"{name} has {len(prompts)} prompts and answers {answers!r}")
        for prompt, answer in zip(prompts, answers, strict=True):
            if str(_text(answer) or "").strip():
                yield _question(name, prompt, answer)


def _pair(name: str, item: Any) -> tuple[Any, Any]:
    if not isinstance(item, Mapping) or not item.get("prompt"):
        raise InvalidRequestError(f"{name} must hold dicts of prompt and answer, got {item!r}")
    return item["prompt"], _first(item, ("target", "ground_truth"))


def _question(name: str, prompt: Any, answer: Any) -> Question:
    return Question(_string(_text(prompt), name), _string(_text(answer), f"the answer to {name}"))
